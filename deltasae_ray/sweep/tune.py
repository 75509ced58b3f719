"""Ray Tune over the grid. A trial fits its layers and seeds by Ray Train; it never harvests."""

from collections.abc import Sequence
from typing import Any

from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.run import fit_points
from deltasae_ray.storage import Storage, digest
from deltasae_ray.sweep.cluster import TRIAL_CPUS
from deltasae_ray.sweep.grid import Trial


def sweep_trials(storage: Storage, harvest_key: str, grid: Sequence[Trial], layers: Sequence[int], cfg: FitConfig) -> dict[str, str]:
    """Fits every trial of `grid`; the caller leaves out those whose dictionaries all have a manifest.

    The grid is rank × size, which is studied and never stopped early, so the scheduler is FIFO.

    Returns:
        Name of each trial that failed after its retries → its error; the rest are unharmed.
    """
    import ray
    from ray import tune

    if not grid:
        return {}
    shared = {"storage": storage, "harvest_key": harvest_key, "layers": tuple(layers), "fit": cfg}

    def run(config: dict[str, Any]) -> None:
        trial = config["trial"]
        fitted = fit_points(storage, harvest_key, trial.points(shared["layers"], cfg.seeds), cfg)
        values = [f.metrics["fvu"] for f in fitted]
        tune.report({"fvu": sum(values) / len(values), "dictionaries": len(fitted)})

    tuner = tune.Tuner(
        tune.with_resources(run, {"CPU": TRIAL_CPUS}),
        param_space={"trial": tune.grid_search(list(grid))},
        tune_config=tune.TuneConfig(
            metric="fvu",
            mode="min",
            max_concurrent_trials=cfg.max_concurrent_trials,
            trial_dirname_creator=lambda trial: trial.config["trial"].name,
            trial_name_creator=lambda trial: trial.config["trial"].name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{digest([harvest_key, *(t.name for t in grid)])}",
            storage_path=storage.path("ray") if storage.is_local else f"{storage.root}/ray",
            failure_config=tune.FailureConfig(max_failures=cfg.max_failures),
            verbose=0,
        ),
    )
    results = tuner.fit()
    del ray
    return {grid[i].name: str(result.error) for i, result in enumerate(results) if result.error is not None}
