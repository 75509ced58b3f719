"""A small sweep in a process of its own, to be killed: `python -m tests.study.killed ROOT CASE`."""

import sys
from dataclasses import replace

from deltasae_ray.fit.config import FitConfig
from deltasae_ray.runtime.local import start_local
from deltasae_ray.sae.identity import Trial
from deltasae_ray.storage import Storage
from deltasae_ray.study.search import search
from deltasae_ray.study.tune import sweep_trials
from tests.fit.made import CFG, KEY

GRID, LAYERS = [Trial("r4", 32, 4, "topk"), Trial("late", 32, 4, "topk")], (3,)
_CASE = replace(CFG, steps=600, seeds=2, search_samples=3, max_concurrent_trials=1)
CASES: dict[str, FitConfig] = {
    "grid": _CASE,
    "asha": replace(_CASE, search="asha"),
    "optuna": replace(_CASE, search="optuna"),
    "ddp": replace(_CASE, layout="ddp", workers=2),
}


def sweep(storage: Storage, cfg: FitConfig) -> dict[Trial, FitConfig]:
    """What the sweep does once it has its shards: the settings of every trial, all of which are fitted."""
    settings, failed = (
        search(storage, KEY, GRID, LAYERS, cfg) if cfg.search != "none" else (dict.fromkeys(GRID, cfg), {})
    )
    failed |= sweep_trials(storage, KEY, settings, LAYERS, cfg)
    assert not failed, failed
    return settings


if __name__ == "__main__":
    start_local(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": "tests.fit.ledger.setup"},
    )
    sweep(Storage(sys.argv[1]), CASES[sys.argv[2]])
