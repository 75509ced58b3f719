"""Ray Train fits what no manifest lists yet: one worker a share of the reads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltasae_ray import gauges, heartbeat, stalls
from deltasae_ray.errors import DeltaSaeError, DictionaryError, PrecisionError
from deltasae_ray.fit.config import CPUS_PER_WORKER, MAX_FAILURES, FitConfig
from deltasae_ray.fit.fitting import FAILED, MANIFEST, FitJob
from deltasae_ray.fit.memory import node_bytes, node_resources, workers_on
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.progress import progress
from deltasae_ray.fit.worker import fit_share, groups
from deltasae_ray.heartbeat import LOADING_S, Limits
from deltasae_ray.runtime.rendezvous import torch_config
from deltasae_ray.runtime.training import check_run, training_driver
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage, digest


@dataclass(frozen=True)
class FittedDictionary:
    """A dictionary that counts: its manifest is written."""

    point: FitPoint
    key: str
    """Folder below the storage root; `Dictionary.load` opens it."""
    digest: str
    """Of its files."""
    metrics: dict[str, float]
    """Held-out figures: fvu, l0, alive, effective_latents, effective_firing."""
    curve: tuple[tuple[int, float], ...]
    """Optimizer step and training FVU since the last point."""
    dead: tuple[tuple[int, float], ...]
    """Optimizer step and latents that were dead at it."""
    rows: int
    """Training rows."""


def keys_of(
    storage: Storage, harvest_key: str, points: Sequence[FitPoint], cfg: FitConfig
) -> dict[FitPoint, str]:
    """The folder of every point, finished or not."""
    shards = open_harvest(storage, harvest_key)
    sources = {name: shards.source(name).digest for name in {p.adapter for p in points}}
    return {p: p.key(harvest_key, sources, cfg) for p in points}


def fitted_points(
    storage: Storage, harvest_key: str, points: Sequence[FitPoint], cfg: FitConfig
) -> dict[FitPoint, FittedDictionary]:
    """Finds those of `points` that are finished."""
    fitted = {}
    for point, key in keys_of(storage, harvest_key, points, cfg).items():
        if storage.exists(f"{key}/{MANIFEST}"):
            row = storage.read_json(f"{key}/{MANIFEST}")
            curve, dead = (
                tuple((int(step), float(value)) for step, value in row[name]) for name in ("curve", "dead")
            )
            fitted[point] = FittedDictionary(
                point, key, row["digest"], row["metrics"], curve, dead, row["rows"]
            )
    return fitted


def fit_points(
    storage: Storage,
    harvest_key: str,
    points: Sequence[FitPoint],
    cfg: FitConfig,
    *,
    description: str = "fit",
    bar: bool = True,
) -> list[FittedDictionary]:
    """Fits the points that no manifest lists, by one Ray Train run named after them; returns all, in the
    order of `points`.

    Every dictionary has its own checkpoint below its folder, so a killed worker or driver continues where it
    was, whatever the run it belonged to.

    Raises:
        DictionaryError, PrecisionError: rows that no dictionary can be fitted to; the other points are fitted
        and stay.
        ShardError: a harvest that is incomplete or damaged.
    """
    done = fitted_points(storage, harvest_key, points, cfg)
    missing = [p for p in points if p not in done]
    if missing:
        keys = keys_of(storage, harvest_key, missing, cfg)
        forget_failures(storage, keys.values())
        with progress(storage, list(keys.values()), cfg.steps, description, show=bar):
            fit_job(FitJob(storage, harvest_key, tuple(missing), cfg))
        done |= fitted_points(storage, harvest_key, missing, cfg)
        raise_failures(storage, {p: key for p, key in keys.items() if p not in done})
        for point in missing:
            _show(done[point])
    return [done[p] for p in points]


def _show(fitted: FittedDictionary) -> None:
    tags = {"adapter": fitted.point.adapter, "dictionary": str(fitted.point)}
    gauges.show("fvu", fitted.metrics["fvu"], **tags)
    if fitted.dead:
        gauges.show("dead_share", fitted.dead[-1][1] / fitted.point.d_sae, **tags)


def forget_failures(storage: Storage, keys: Iterable[str]) -> bool:
    """Deletes what is on record of dictionaries that could not be fitted, so that they are tried again;
    whether there was any."""
    failed = [name for key in keys if storage.exists(name := f"{key}/{FAILED}")]
    for name in failed:
        storage.delete_file(name)
    return bool(failed)


def fit_job(job: FitJob) -> None:
    """Takes every point of the job to the end of its last window, by one Ray Train run; finished ones are
    left alone."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from deltasae_ray.runtime.controller import WatchedController, train_to_the_end

    cfg, storage = job.cfg, job.storage
    keys = keys_of(storage, job.harvest_key, job.points, cfg)
    name = digest([sorted(keys.values()), [window.index for window in job.taken]])
    resources = {"CPU": CPUS_PER_WORKER} | ({"GPU": cfg.gpus_per_worker} if cfg.gpus_per_worker else {})
    words = dict(
        train_loop_per_worker=_loop,
        train_loop_config={"job": job, "limits": (limits := Limits())},
        torch_config=torch_config(),
        scaling_config=ScalingConfig(
            num_workers=cfg.workers if cfg.layout == "ddp" else min(cfg.workers, len(groups(job.points))),
            use_gpu=cfg.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"fit-{name}",
            storage_path=storage.path("ray"),
            storage_filesystem=storage.fs,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[WatchedController(f"the controller of fit-{name}", limits)],
        ),
    )
    check_run(storage, f"ray/fit-{name}")
    try:
        with training_driver():
            train_to_the_end(words, MAX_FAILURES)
    except Exception as e:
        failures = [f for f in getattr(e, "worker_failures", {}).values() if isinstance(f, DeltaSaeError)]
        if failures:
            raise failures[0] from None
        raise


def failure(storage: Storage, key: str) -> DictionaryError | PrecisionError | None:
    """What a worker wrote down of a dictionary that cannot be fitted, as what it was."""
    if not storage.exists(f"{key}/{FAILED}"):
        return None
    record = storage.read_json(f"{key}/{FAILED}")
    return (PrecisionError if record["type"] == PrecisionError.__name__ else DictionaryError)(
        str(record["message"])
    )


def raise_failures(storage: Storage, unfinished: Mapping[FitPoint, str]) -> None:
    """Raises what the workers wrote down of points that cannot be fitted."""
    if not unfinished:
        return
    errors = [error for key in unfinished.values() if (error := failure(storage, key))]
    assert errors, (
        f"Ray Train ended well, but {[str(p) for p in unfinished]} have neither a manifest nor an error"
    )
    also = f" ({len(errors)} dictionaries could not be fitted; all others are)" if len(errors) > 1 else ""
    raise type(errors[0])(f"{errors[0]}{also}")


def _loop(config: dict[str, Any]) -> None:
    """Ray Train's loop: a thin shell around `fit_share`."""
    import ray.train
    import torch

    from deltasae_ray.sae.peers import ProcessGroup
    from deltasae_ray.sae.threads import cores

    job: FitJob = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    here = workers_on(node_resources(), job.cfg, world, context.get_local_world_size())
    torch.set_num_threads(max(1, cores() // here))
    device = "cuda" if torch.cuda.is_available() and job.cfg.gpus_per_worker else "cpu"
    memory, limits, shared = node_bytes() // here, config["limits"], job.cfg.layout == "ddp" and world > 1
    if shared and rank:  # its sums wait while the first writes what all have made
        limits = replace(limits, floor_s=max(limits.floor_s, limits.first_s))
    stalls.watch(f"fit worker {rank} of {world}", limits)
    with heartbeat.unit("reading of rows", LOADING_S):
        # No report: it is a barrier, and would hold workers that are done. Manifests and checkpoints say how
        # far each one is.
        if shared:
            fit_share(job, 0, 1, device, ProcessGroup(rank, world), memory)
        else:
            fit_share(job, rank, world, device, None, memory)
