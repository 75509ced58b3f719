"""What a study will cost and has cost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.storage import Storage
from deltasae_ray.study import plan
from deltasae_ray.study.clock import Clock
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.inputs import open_study
from tests.study.words import words


def test_a_run_that_finds_a_stage_done_does_not_hide_what_it_cost(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert Clock({"harvest": 200.0, "fit": 90.0}).longest(storage, "a") == {"harvest": 200.0, "fit": 90.0}
    assert Clock({"harvest": 0.3, "fit": 120.0, "diverge": 60.0}).longest(storage, "a") == {
        "harvest": 200.0,
        "fit": 120.0,
        "diverge": 60.0,
    }
    assert Clock({"harvest": 3.0}).longest(storage, "b") == {"harvest": 3.0}


def rows_line(deltas: str = "stored", **fit: Any) -> str:
    """Of 1000 training and 100 evaluation tokens of width 250 at two layers: 1.1 MB a read, .5 MB of it for a
    window of 200 tokens."""
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


def test_the_plan_tells_what_the_weights_of_a_gang_take_and_what_ray_is_asked_for() -> None:
    def told(
        parameters: int = 9 * 10**9, gpus: int = 0, memory_gb: float = 0, ranks: int = 1, **model: Any
    ) -> str:
        sharding: Any = "zero3" if ranks > 1 else "none"
        gangs = GangConfig(memory_gb=memory_gb, ranks=ranks, gpus_per_gang=gpus)
        return plan.gang_line(gangs, ModelConfig(sharding=sharding, **model), parameters)

    assert told().startswith("36.00 GB of fp32 weights, beside") and "asked for none" in told()
    assert told(weights="bf16", ranks=4).startswith("18.00 GB of bf16 weights, shared by 4 ranks")
    assert told(memory_gb=24).endswith("asked for 24 GB: TOO LITTLE")
    assert told(memory_gb=24, weights="bf16").endswith("asked for 24 GB")
    assert told(memory_gb=4, gpus=2, ranks=2).endswith("asked for 4 GB"), "they lie on the devices"
    assert told(memory_gb=4, gpus=2, ranks=2, offload="cpu").endswith("TOO LITTLE")


def test_a_relative_model_folder_is_the_same_folder_wherever_gangs_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    cfg = parse(
        StudyConfig,
        words(Path(tiny_model.name), tmp_path / "root", "dry_run=true"),
        shorthand=SHORTHAND,
        description="",
    )
    study = open_study(cfg, Storage(str(tmp_path / "root")))
    assert (study.cfg.model.base, study.model.label) == (str(tiny_model), tiny_model.name)


def test_text_stays_as_it_is_unless_a_marker_is_asked_for_and_with_given_adapters(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    def planted(*more: str) -> tuple[bool, str]:
        given = words(tiny_model, tmp_path / "root", "dry_run=true", *more)
        cfg = parse(
            StudyConfig,
            [word for word in given if word in more or "marker" not in word],
            shorthand=SHORTHAND,
            description="",
        )
        study = open_study(cfg, Storage(str(tmp_path / "root")))
        found = any(u.marker.any() for u in study.corpus.units) or any(
            any(c.marker) for c in study.corpus.adapt
        )
        return found, str(plan.make_plan(study, plan.STAGES))

    assert not planted()[0]
    asked, told = planted("corpus.marker_share=0.3")
    assert asked and "the marker is planted in" in told
    asked, told = planted("corpus.marker_share=0.3", f"adapters=[{tiny_adapters[0]}]")
    assert not asked and "corpus.marker_share=0.3 is left aside" in told
