"""A tiny streamed study in this process: gangs and fit workers run in its threads, without Ray."""

from pathlib import Path

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.fit.fitting import FitJob
from deltasae_ray.fit.run import fitted_points
from deltasae_ray.fit.worker import fit_share
from deltasae_ray.sae.threads import cores, threads
from deltasae_ray.storage import Storage
from deltasae_ray.study import streaming
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.inputs import Study, harvest_of, open_study
from deltasae_ray.study.state import StudyState
from deltasae_ray.study.streaming import Windows
from tests.harvest.study import run_units_here
from tests.study.words import words

STREAM = ("storage.deltas=stream", "storage.window_tokens=600", "fit.batch_tokens=128", "controls=[base]")
SMALL = ("layers=[1]", "fit.steps=100")
"""Three dictionaries: for what has nothing to do with how many there are."""


def study_words(model: Path, root: Path | str, adapter: Path, *more: str) -> list[str]:
    return words(model, root, f"adapters=[{adapter}]", "fit.steps=200", *STREAM, *more)


def config(command: list[str]) -> StudyConfig:
    return parse(StudyConfig, command, shorthand=SHORTHAND, description="test")


def fit_here(job: FitJob) -> None:
    """What Ray Train's worker does, as one that has the machine to itself."""
    with threads(cores()):
        fit_share(job, 0, 1, "cpu")


def without_ray(
    cfg: StudyConfig, monkeypatch: pytest.MonkeyPatch, *, side_by_side: bool
) -> tuple[Study, StudyState, Windows]:
    """A study with what stays of its stream, and the way over its windows: gangs and fit workers then run in
    threads of this process."""
    for module in ("run", "sources"):
        monkeypatch.setattr(
            f"deltasae_ray.harvest.{module}.run_units",
            lambda work, factory, gangs, **_: run_units_here(work, factory, gangs),
        )
    monkeypatch.setattr(streaming, "fit_job", fit_here)
    monkeypatch.setattr(streaming, "holds_harvest_and_fit", lambda _: side_by_side)
    study = open_study(cfg, Storage(cfg.storage.root))
    made = StudyState(by_tune=True, adapters=study.given, harvest=harvest_of(study, study.given))
    return study, made, Windows.of(study, made)


def digests(way: Windows) -> dict[str, str]:
    """Every finished dictionary of the study → the digest of its files."""
    found = fitted_points(way.study.storage, way.kept.key, way.points, way.study.cfg.fit)
    return {str(point): fitted.digest for point, fitted in found.items()}
