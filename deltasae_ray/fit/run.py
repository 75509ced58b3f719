"""Ray Train fits what no manifest lists yet: one worker a share of the reads."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.worker import FitJob, groups
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
    rows: int
    """Training rows."""


def keys_of(storage: Storage, harvest_key: str, points: Sequence[FitPoint], cfg: FitConfig) -> dict[FitPoint, str]:
    """The folder of every point, finished or not."""
    shards = open_harvest(storage, harvest_key)
    sources = {name: shards.source(name).digest for name in {p.adapter for p in points}}
    return {p: p.key(harvest_key, sources, cfg) for p in points}


def fitted_points(storage: Storage, harvest_key: str, points: Sequence[FitPoint], cfg: FitConfig) -> dict[FitPoint, FittedDictionary]:
    """Those of `points` that are finished."""
    found = {}
    for point, key in keys_of(storage, harvest_key, points, cfg).items():
        if storage.exists(f"{key}/manifest.json"):
            row = storage.read_json(f"{key}/manifest.json")
            curve = tuple((int(step), float(value)) for step, value in row["curve"])
            found[point] = FittedDictionary(point, key, row["digest"], row["metrics"], curve, row["rows"])
    return found


def fit_points(
    storage: Storage, harvest_key: str, points: Sequence[FitPoint], cfg: FitConfig, *, description: str = "fit", bar: bool = True
) -> list[FittedDictionary]:
    """Fits the points that no manifest lists, by one Ray Train run named after them; returns all, in the order of `points`.

    Every dictionary has its own checkpoint below its folder, so a killed worker or driver continues where it was, whatever the
    run it belonged to.

    Raises:
        DictionaryError, PrecisionError, ShardError: what a worker raised on purpose.
    """
    done = fitted_points(storage, harvest_key, points, cfg)
    missing = [p for p in points if p not in done]
    if missing:
        keys = keys_of(storage, harvest_key, missing, cfg)
        with _bar(storage, list(keys.values()), description, show=bar):
            _train(FitJob(storage, harvest_key, tuple(missing), cfg), digest(sorted(keys.values())))
        done |= fitted_points(storage, harvest_key, missing, cfg)
    return [done[p] for p in points]


def _train(job: FitJob, name: str) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    cfg, storage = job.cfg, job.storage
    resources = {"CPU": cfg.cpus_per_worker} | ({"GPU": cfg.gpus_per_worker} if cfg.gpus_per_worker else {})
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=min(cfg.workers, len(groups(job.points))), use_gpu=cfg.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"fit-{name}",
            storage_path=storage.path("ray"),
            storage_filesystem=storage.fs,
            failure_config=FailureConfig(max_failures=cfg.max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as e:
        failures = [f for f in getattr(e, "worker_failures", {}).values() if isinstance(f, DeltaSaeError)]
        if failures:
            raise failures[0] from None
        raise


def _loop(config: dict[str, Any]) -> None:
    """Ray Train's loop: a thin shell around `fit_share`."""
    import ray.train
    import torch

    from deltasae_ray.fit.worker import fit_share
    from deltasae_ray.sae.threads import cores

    job: FitJob = config["job"]
    context = ray.train.get_context()
    concurrent = context.get_local_world_size() * job.cfg.max_concurrent_trials
    torch.set_num_threads(max(1, cores() // concurrent))
    device = "cuda" if torch.cuda.is_available() and job.cfg.gpus_per_worker else "cpu"
    done = fit_share(job, context.get_world_rank(), context.get_world_size(), device)
    ray.train.report({"fitted": done})


@contextmanager
def _bar(storage: Storage, keys: list[str], description: str, *, show: bool) -> Iterator[None]:
    """A progress bar over manifests as they appear: the only truth about what is fitted."""
    if not show:
        yield
        return
    stop = threading.Event()
    with tqdm(total=len(keys), desc=description, unit="dictionary") as bar:

        def watch() -> None:
            left = set(keys)
            while not stop.is_set():
                finished = {k for k in left if storage.exists(f"{k}/manifest.json")}
                left -= finished
                bar.update(len(finished))
                stop.wait(1.0)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.update(sum(storage.exists(f"{k}/manifest.json") for k in keys) - int(bar.n))
