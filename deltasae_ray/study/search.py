"""Search of a trial's learning rate and AuxK weight on FVU, by ASHA or Optuna, before the trial itself is
fitted.

Size, k and architecture are the axes under study and are not searched (FVU always falls with k). A candidate
is fitted with the first seed only, on four fifths of the training documents, and judged on the last fifth:
the evaluation split chooses nothing. It has the same kind of content key as everything else, so that one that
was killed continues from its checkpoints. The trial's own dictionaries are then fitted to all training
documents with the settings that were best, and so are its controls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from deltasae_ray import stalls
from deltasae_ray.errors import ConfigError
from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.config import CPUS_PER_WORKER, MAX_FAILURES, FitConfig
from deltasae_ray.fit.fitting import FitJob
from deltasae_ray.fit.memory import node_bytes, node_resources, workers_on
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import keys_of
from deltasae_ray.fit.worker import fit_rounds
from deltasae_ray.heartbeat import Limits
from deltasae_ray.runtime.training import training_driver
from deltasae_ray.sae.identity import Trial
from deltasae_ray.storage import Storage, digest
from deltasae_ray.study.candidates import Candidates, Ended, tune_folder, watching
from deltasae_ray.study.grid import grid_points
from deltasae_ray.study.tune import keep_keys_at_home

AUXK = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
LR_FACTOR = 4.0
SEARCHED = ("lr", "auxk")
"""What a search tries values of, by the names of the configuration. FVU always falls with k, which is
therefore not among them."""


def search(
    storage: Storage, harvest_key: str, grid: Sequence[Trial], layers: Sequence[int], cfg: FitConfig
) -> tuple[dict[Trial, FitConfig], dict[Trial, str]]:
    """The settings of every trial, and the trials of which no candidate could be fitted, with the error.

    What was found is kept in searches/<key>.json; a trial that is there is not searched again.
    """
    settings, failed = {}, {}
    for trial in grid:
        key = search_key(storage, harvest_key, trial, layers, cfg)
        if not storage.exists(key):
            winner = _search_one(storage, harvest_key, trial, layers, cfg, key)
            if not any("fvu" in row for row in winner):
                failed[trial] = next((row["error"] for row in winner), "no candidate was fitted to the end")
                storage.delete_file(_running(key))  # the next run begins its search anew
                continue
            storage.write_json(key, {"trial": trial.name, "candidates": winner})
            storage.delete_file(_running(key))
            for row in winner:
                _forget_checkpoints(storage, harvest_key, trial, layers, replace(cfg, **row["settings"]))
        best = min(
            (row for row in storage.read_json(key)["candidates"] if "fvu" in row), key=lambda row: row["fvu"]
        )
        settings[trial] = replace(cfg, **best["settings"])
    return settings, failed


def candidate_points(trial: Trial, layers: Sequence[int]) -> tuple[FitPoint, ...]:
    """What a candidate fits."""
    return tuple(replace(p, documents="search") for p in grid_points(trial, layers, 1))


def _forget_checkpoints(
    storage: Storage, harvest_key: str, trial: Trial, layers: Sequence[int], cfg: FitConfig
) -> None:
    """Deletes checkpoints of a candidate that ASHA stopped, which nobody will continue."""
    for key in keys_of(storage, harvest_key, candidate_points(trial, layers), cfg).values():
        checkpoint.remove(storage, key)


def search_key(
    storage: Storage, harvest_key: str, trial: Trial, layers: Sequence[int], cfg: FitConfig
) -> str:
    """Where the result is kept: named by the dictionaries that are searched, and so by the content of what
    they are fitted to."""
    dictionaries = keys_of(storage, harvest_key, candidate_points(trial, layers), cfg)
    return f"searches/{digest([*sorted(dictionaries.values()), _depends_on(cfg)])}.json"


def _running(key: str) -> str:
    """Where candidates stand while the search of a key runs."""
    return key.replace("searches/", "searching/", 1)


def _depends_on(cfg: FitConfig) -> list[Any]:
    return [cfg.search, *SEARCHED, cfg.search_samples, cfg.lr, cfg.auxk, cfg.l1, cfg.batch_tokens, cfg.steps]


def _search_one(
    storage: Storage, harvest_key: str, trial: Trial, layers: Sequence[int], cfg: FitConfig, key: str
) -> list[dict[str, Any]]:
    """Each candidate: its settings, and its FVU on what it was not fitted to if it was fitted to the end, or
    its error."""
    from ray import tune

    candidates = Candidates(storage, _running(key), SEARCHED)  # the driver may have died: then they go on
    keep_keys_at_home()
    trainable = tune.with_resources(
        partial(
            _candidate,
            storage=storage,
            harvest_key=harvest_key,
            trial=trial,
            layers=tuple(layers),
            cfg=cfg,
            ended=candidates.ended,
            limits=Limits(),
        ),
        {"CPU": CPUS_PER_WORKER} | ({"GPU": cfg.gpus_per_worker} if cfg.gpus_per_worker else {}),
    )
    with training_driver(), tune_folder() as folder:
        tuner = tune.Tuner(
            trainable,
            param_space=_space(cfg),
            tune_config=tune.TuneConfig(
                metric="fvu", mode="min", num_samples=cfg.search_samples, **_how(cfg, candidates.settings)
            ),
            run_config=tune.RunConfig(
                name=f"search-{digest(key)}",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[watching(candidates, SEARCHED)],
                verbose=0,
            ),
        )
        return _kept_rows(tuner.fit())


def _kept_rows(results: Any) -> list[dict[str, Any]]:
    """Tune's results as they are kept."""
    rows = []
    for result in results:
        metrics = result.metrics or {}
        row: dict[str, Any] = {"settings": {name: (result.config or {})[name] for name in SEARCHED}}
        if result.error is not None:
            row["error"] = str(result.error)
        elif metrics.get("finished"):
            row["fvu"] = metrics["fvu"]
        rows.append(row | {"steps": metrics.get("steps", 0)})
    return rows


def _space(cfg: FitConfig) -> dict[str, Any]:
    from ray import tune

    return {"lr": tune.loguniform(cfg.lr / LR_FACTOR, cfg.lr * LR_FACTOR), "auxk": tune.choice(list(AUXK))}


def _how(cfg: FitConfig, before: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Scheduler and sampler.

    ASHA's candidates are drawn from a seed, so that another driver finds them, and their checkpoints, again.
    Optuna draws each from the results of those before it: it is given the candidates that began `before`, in
    their order, and goes on from another seed, since the same would draw them once more.
    """
    if cfg.search == "asha":
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search import BasicVariantGenerator

        grace = max(cfg.checkpoint_every, cfg.steps // 4)
        scheduler = ASHAScheduler(time_attr="steps", max_t=cfg.steps, grace_period=grace, reduction_factor=2)
        return {
            "scheduler": scheduler,
            "search_alg": BasicVariantGenerator(max_concurrent=cfg.at_once, random_state=0),
        }
    from ray.tune.search.optuna import OptunaSearch

    try:
        known = [dict(settings) for settings in before]
        return {
            "search_alg": OptunaSearch(points_to_evaluate=known or None, seed=len(known)),
            "max_concurrent_trials": cfg.at_once,
        }
    except (AssertionError, ImportError) as e:
        raise ConfigError(
            "fit.search=optuna needs Optuna: install the extra deltasae-ray[search], or use fit.search=asha"
        ) from e


def _candidate(  # noqa: PLR0913 - Ray Tune passes them one by one
    config: dict[str, Any],
    *,
    storage: Storage,
    harvest_key: str,
    trial: Trial,
    layers: Sequence[int],
    cfg: FitConfig,
    ended: Sequence[tuple[Mapping[str, float], Ended]],
    limits: Limits,
) -> None:
    """Fits the trial's layers with the first seed, reporting after each round for ASHA to judge; what `ended`
    before reports so again."""
    import torch
    from ray import tune

    from deltasae_ray.sae.threads import cores

    for settings, last in ended:
        if all(config[name] == value for name, value in settings.items()):
            tune.report(asdict(last))
            return
    stalls.watch(f"a candidate of the search for {trial.name}", limits)
    here = workers_on(node_resources(), cfg, workers=1)
    torch.set_num_threads(max(1, cores() // here))
    job = FitJob(storage, harvest_key, candidate_points(trial, layers), replace(cfg, **config))
    device = "cuda" if torch.cuda.is_available() and cfg.gpus_per_worker else "cpu"
    before: tuple[int, float] | None = None
    for now in fit_rounds(job, device, node_bytes() // here):
        if before is not None:
            tune.report({"steps": before[0], "fvu": before[1], "finished": 0})
        before = now
    assert before is not None
    tune.report({"steps": before[0], "fvu": before[1], "finished": 1})
