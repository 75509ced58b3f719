"""Ray Tune over the grid. A trial fits its layers and seeds by Ray Train; it never harvests."""

from collections.abc import Mapping, Sequence
from typing import Any

from deltasae_ray import stalls
from deltasae_ray.fit.config import MAX_FAILURES, FitConfig
from deltasae_ray.fit.progress import progress
from deltasae_ray.fit.run import fit_points, keys_of
from deltasae_ray.heartbeat import Limits
from deltasae_ray.redaction import is_secret
from deltasae_ray.runtime.training import training_driver
from deltasae_ray.sae.identity import Trial
from deltasae_ray.storage import Storage, digest
from deltasae_ray.study.candidates import tune_folder
from deltasae_ray.study.cluster_check import TRIAL_CPUS
from deltasae_ray.study.grid import grid_points


def sweep_trials(
    storage: Storage,
    harvest_key: str,
    settings: Mapping[Trial, FitConfig],
    layers: Sequence[int],
    cfg: FitConfig,
) -> dict[Trial, str]:
    """Fits every trial with its settings; the caller leaves out those whose dictionaries all have a manifest.

    The grid is rank × size, which is studied and never stopped early, so the scheduler is FIFO.

    Returns:
        Each trial that failed after its retries → its error; the rest are unharmed.
    """
    from ray import tune

    keep_keys_at_home()
    grid = list(settings)
    if not grid:
        return {}
    by_name = {trial.name: trial for trial in grid}

    limits = Limits()

    def run(config: dict[str, Any]) -> None:
        trial = by_name[config["trial"]]
        stalls.watch(f"the trial {trial.name}", limits)
        fitted = fit_points(
            storage, harvest_key, grid_points(trial, layers, cfg.seeds), settings[trial], bar=False
        )
        values = [f.metrics["fvu"] for f in fitted]
        tune.report({"fvu": sum(values) / len(values), "dictionaries": len(fitted)})

    keys = keys_of_trials(storage, harvest_key, settings, layers, cfg.seeds)
    with (
        progress(storage, keys, cfg.steps, f"{len(grid)} trials", show=True),
        training_driver(),
        tune_folder() as folder,
    ):
        tuner = tune.Tuner(
            tune.with_resources(run, {"CPU": TRIAL_CPUS}),
            param_space={"trial": tune.grid_search(list(by_name))},
            tune_config=tune.TuneConfig(
                metric="fvu",
                mode="min",
                max_concurrent_trials=cfg.at_once,
                trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=experiment(keys),
                # pickles: none of Tune's lies below the storage root, where others may write
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        )
        results = tuner.fit()
    return {grid[i]: str(results[i].error) for i in range(len(results)) if results[i].error is not None}


def keep_keys_at_home() -> None:
    """Keeps Tune from copying AWS_… variables into its trials' runtime environments, which Ray writes to its
    logs in clear.

    Workers inherit the environment of a local Ray; on a cluster a node has a role or variables of its own, as
    for every other stage.
    """
    from ray.tune.execution import class_cache

    for name in [n for n in class_cache.ENV_VARS_TO_PROPAGATE if is_secret(n)]:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(name)


def keys_of_trials(
    storage: Storage, harvest_key: str, settings: Mapping[Trial, FitConfig], layers: Sequence[int], seeds: int
) -> list[str]:
    """The dictionaries that trials fit with their settings."""
    return [
        key
        for t, cfg in settings.items()
        for key in keys_of(storage, harvest_key, grid_points(t, layers, seeds), cfg).values()
    ]


def experiment(keys: Sequence[str]) -> str:
    """Named by what is fitted, whatever adapters are called: another recipe, or another adapter of the name,
    is another experiment."""
    return f"tune-{digest(sorted(keys))}"
