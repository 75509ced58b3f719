"""The stages of a study in order. A job runs up to its own; what is already done is only listed."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary, fit_points, fitted_points
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sweep.cluster import check_cluster, connect, resolve_root
from deltasae_ray.sweep.config import StudyConfig
from deltasae_ray.sweep.grid import Trial, base_points, random_points, trials
from deltasae_ray.sweep.plan import STAGES, Clock, Plan, check_disk, make_plan
from deltasae_ray.sweep.study import Study, adapters_of, harvest_of, open_study
from deltasae_ray.sweep.tune import sweep_trials
from deltasae_ray.tracking import Tracker


@dataclass
class Progress:
    """What the stages have made so far."""

    adapters: tuple[AdapterRef, ...] = ()
    harvest: Harvest | None = None
    base: list[FittedDictionary] = field(default_factory=list)
    random: list[FittedDictionary] = field(default_factory=list)
    fitted: dict[Trial, list[FittedDictionary]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(stage: str, cfg: StudyConfig) -> None:
    """Runs the job `stage`: adapt, harvest, fit, diverge, or sweep (all of it, by Tune)."""
    storage = resolve_root(cfg.storage.root)
    study = open_study(cfg, storage)
    stages = STAGES if stage in ("sweep", "diverge") else STAGES[: STAGES.index(stage) + 1]
    plan = make_plan(study, stages)
    say(f"Plan\n{plan}\n")
    check_disk(study, plan)
    if cfg.dry_run:
        return
    connect()
    check_cluster(cfg, storage)
    clock, made = Clock(), Progress()
    for name in stages:
        if name != "report":
            with clock.stage(name):
                _STAGES[name](study, made, stage == "sweep")
    if "report" in stages:
        finish(study, made, plan, clock)
    say(clock.beside(plan))
