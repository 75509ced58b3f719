"""A trial that fails every time beside ones that do not: as Ray Tune's, and with d_sae=auto by the command a
user types, twice."""

import sys
from pathlib import Path

import pytest

from deltasae_ray.fit.run import fitted_points
from deltasae_ray.sae.identity import Trial
from deltasae_ray.storage import Storage
from deltasae_ray.study.grid import grid_points
from deltasae_ray.study.main import main
from deltasae_ray.study.tune import sweep_trials
from tests.fit.made import CFG, KEY, make_harvest
from tests.study.words import words
from tests.tiny import save_adapter

pytestmark = pytest.mark.slow


def test_a_trial_that_always_fails_is_told_and_the_others_are_fitted(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasae_ray.study.tune.MAX_FAILURES", 0)
    storage, cfg = Storage(str(tmp_path)), CFG
    make_harvest(storage)
    good, silent = (Trial(adapter, 32, 4, "topk") for adapter in ("r4", "late"))
    failed = sweep_trials(storage, KEY, {silent: cfg, good: cfg}, [1, 3], cfg)
    assert list(failed) == [silent] and "rows are equal" in failed[silent]
    points = [*grid_points(good, [1, 3], 1), *grid_points(silent, [3], 1)]
    assert (
        list(
            fitted_points(storage, KEY, [*grid_points(good, [1, 3], 1), *grid_points(silent, [1, 3], 1)], cfg)
        )
        == points
    ), "only layer 1 is silent"


# the first test here, and what the page and MLflow say of failures: tests/report, tests/tracking
@pytest.mark.prove
def test_a_trial_that_always_fails_is_told_everywhere_tried_again_and_harms_no_other(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ray_cluster: None,
) -> None:
    from mlflow import MlflowClient

    good = save_adapter(tmp_path / "good", tiny_model, rank=2, seed=1)
    late = save_adapter(
        tmp_path / "late", tiny_model, rank=2, seed=2, layers_to_transform=[2]
    )  # nothing changes at layer 1
    root = tmp_path / "study"
    more = (f"adapters=[{good},{late}]", "fit.d_sae=auto", "fit.steps=20", "controls=[gaussian]")
    monkeypatch.setattr("deltasae_ray.study.tune.MAX_FAILURES", 0)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words(tiny_model, root, *more)])

    def run(job: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(job, None)
        said = capsys.readouterr()
        assert ended.value.code == 2
        assert (
            "1 of 2 trials failed" in said.err
            and "late-d256-k4-topk" in said.err
            and "rows are equal" in said.err
        )
        assert "fit.d_sae=auto: 256 latents" in said.out

    run("sweep")
    page = (root / "report.html").read_text()
    assert "late-d256-k4-topk" in page and "rows are equal" in page
    assert page.count("gaussian control could not be fitted") == 1  # late's, at layer 1: as its trial
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]

    def runs() -> dict[str, list]:
        found: dict[str, list] = {}
        for r in client.search_runs(experiments):
            found.setdefault(f"{r.data.tags['level']} {r.info.status}", []).append(r)
        return found

    first = runs()
    assert {name: len(found) for name, found in first.items()} == {
        "sweep FINISHED": 1,
        "trial FINISHED": 1,
        "trial FAILED": 1,
        "leaf FINISHED": 2,
    }
    (failed,) = first["trial FAILED"]
    assert failed.data.params["adapter"].startswith("late") and "rows are equal" in str(failed.data.tags)
    failures = {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/failed.json")}
    fitted = {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/manifest.json")}
    run("fit")  # without Tune: in one pass with the controls
    assert {p: p.stat().st_mtime_ns for p in fitted} == fitted, "a dictionary was fitted again"
    assert len(failures) == 2, "the trial's and its control's"
    assert all(p.stat().st_mtime_ns > before for p, before in failures.items()), (
        "what failed was not tried again"
    )
    assert {name: len(found) for name, found in runs().items()} == {
        name: len(found) for name, found in first.items()
    }
