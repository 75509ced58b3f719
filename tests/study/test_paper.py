"""The published protocol to its end: the words of the shipped preset, with a tiny model and fewer tokens and
nothing else changed."""

from pathlib import Path

import pytest

from deltasae_ray.analyses.table import read_table
from deltasae_ray.metrics.absent_parts import UNKNOWN
from deltasae_ray.metrics.catalogue import BETWEEN
from deltasae_ray.storage import Storage
from deltasae_ray.study.run import run
from tests.study.streamed import config

PRESET = Path(__file__).parents[2] / "jobs" / "configs" / "paper-gemma3-270m.yaml"
SMALLER = ("corpus.context_len=32", "corpus.fit_tokens=2400", "corpus.eval_tokens=1600", "layers=[1,2]",
    "adapt.ranks=[2,4]", "adapt.max_tokens=400",
           "fit.d_sae=[64]", "fit.steps=40", "diverge.code_tokens=256", "diverge.bootstrap=100",
           "diverge.latents=2",
           "harvest.noise_contexts=2")  # fmt: skip


def preset(model: Path | None, root: Path, *more: str) -> list[str]:
    base = (
        []
        if model is None
        else [f"model.base={model}", *SMALLER, "adapt.targets=[q_proj,k_proj,v_proj,o_proj]"]
    )
    return [f"config={PRESET}", *base, f"storage.root={root}", *more]


@pytest.mark.demo
def test_the_preset_makes_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("sweep", config(preset(None, tmp_path / "root", "dry_run=true")))
    printed = capsys.readouterr().out
    assert (
        "r4, r8, r16, r32 (to be trained, each from 2 seeds)" in printed
        and "2, 4, 8, 9, 14, 16" in printed
        and not (tmp_path / "root").exists()
    )


@pytest.mark.prove
def test_the_preset_runs_to_its_table_with_the_papers_figures_beside_ours(
    tiny_model: Path, tmp_path: Path, ray_cluster: None
) -> None:  # noqa: ARG001
    run("sweep", config(preset(tiny_model, tmp_path)))
    rows = [r for r in read_table(Storage(str(tmp_path))) if r.metric not in BETWEEN]
    assert {(r.adapter, r.layer, r.d_sae, r.architecture) for r in rows} == {
        (a, n, 64, "standard") for a in ("r2", "r4") for n in (1, 2)
    }
    measured = {r.name for r in rows if r.value is not None}
    published = {
        "paper_max_cosine",
        "paper_median_cosine",
        "paper_novel_share",
        "paper_angle_k4",
        "paper_relative_error",
        "density",
    }
    assert published <= measured
    assert {"max_cosine", "max_cosine_base_control", "max_cosine_random_adapter"} <= {r.name for r in rows}
    assert all(r.null is not None for r in rows if r.metric.startswith("paper_") and r.value is not None), (
        "no published figure without a null"
    )
    assert not [r for r in rows if UNKNOWN in r.lacks]
    table = (tmp_path / "paper.md").read_text()
    assert "calibrated" in table and "mean max-cosine" in table and (tmp_path / "report.html").exists()
