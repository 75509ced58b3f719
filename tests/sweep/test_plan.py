"""What a study will cost and has cost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.storage import Storage
from deltasae_ray.sweep import plan
from deltasae_ray.sweep.config import SHORTHAND, StudyConfig
from deltasae_ray.sweep.plan import Clock
from deltasae_ray.sweep.study import open_study
from tests.sweep.words import words


def test_a_run_that_finds_a_stage_done_does_not_hide_what_it_cost(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert Clock({"harvest": 200.0, "fit": 90.0}).longest(storage, "a") == {"harvest": 200.0, "fit": 90.0}
    assert Clock({"harvest": 0.3, "fit": 120.0, "diverge": 60.0}).longest(storage, "a") == {"harvest": 200.0, "fit": 120.0, "diverge": 60.0}
    assert Clock({"harvest": 3.0}).longest(storage, "b") == {"harvest": 3.0}


def rows_line(deltas: str = "stored", **fit: Any) -> str:
    """Of 1000 training and 100 evaluation tokens of width 250 at two layers: 1.1 MB a read, .5 MB of it for a window of 200 tokens."""
    cfg = SimpleNamespace(storage=SimpleNamespace(deltas=deltas, window_tokens=200), fit=FitConfig(**fit))
    corpus = SimpleNamespace(num_tokens=lambda split: {"fit": 1000, "eval": 100}[split])
    study: Any = SimpleNamespace(cfg=cfg, corpus=corpus, model=SimpleNamespace(d_model=250), layers=(1, 2))
    return plan._rows_line(study)


def test_the_plan_tells_what_a_fit_worker_holds_and_when_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_bytes", lambda: 4_800_000)  # a quarter is 1.2 MB
    assert rows_line().startswith("1 MB a fit worker, more where dictionaries train together")
    for too_much in ({"workers": 2}, {"max_concurrent_trials": 2}, {"search": "asha"}):
        assert "CANNOT BE HELD" in rows_line(**too_much)
    assert "CANNOT" not in rows_line("stream", workers=2)


def test_a_relative_model_folder_is_the_same_folder_wherever_gangs_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    cfg = parse(StudyConfig, words(Path(tiny_model.name), tmp_path / "root", "dry_run=true"), shorthand=SHORTHAND, description="")
    study = open_study(cfg, Storage(str(tmp_path / "root")))
    assert (study.cfg.model.base, study.model.label) == (str(tiny_model), tiny_model.name)
