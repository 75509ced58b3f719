"""Tracking, against the embedded store and against a real MLflow server."""

import multiprocessing
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.storage import Storage
from deltasae_ray.tracking import LeafPoint, RunLog, Tracker, TrackingConfig, TrialPoint
from tests.browser.servers import mlflow_server

TRIAL = TrialPoint("r4", rank=4, d_sae=256, k=8, architecture="topk", content="abc")
LEAF = TRIAL.leaf(layer=9, seed=0, reference="toy reference (20,000 tokens)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store as it is made, to copy: creating its tables takes seconds."""
    root = tmp_path_factory.mktemp("empty")
    Tracker(TrackingConfig(), Storage(str(root))).client  # noqa: B018
    return root / "mlflow.db"


@pytest.fixture
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Tracker:
    """On the embedded store, or on a server where a test asks for both."""
    root = tmp_path / "root"
    root.mkdir()
    if getattr(request, "param", "embedded") == "server":
        return Tracker(
            TrackingConfig(uri=request.getfixturevalue("server"), experiment=tmp_path.name),
            Storage(str(root)),
        )
    shutil.copy(request.getfixturevalue("empty_store"), root / "mlflow.db")
    return Tracker(TrackingConfig(), Storage(str(root)))


both_stores = pytest.mark.parametrize(
    "tracker", ["embedded", pytest.param("server", marks=pytest.mark.slow)], indirect=True
)


def again(tracker: Tracker) -> Tracker:
    """The same study as another process sees it."""
    return pickle.loads(pickle.dumps(tracker))


def all_runs(tracker: Tracker, level: str = "") -> list:
    return tracker.client.search_runs(
        [tracker.experiment_id], f"tags.level = '{level}'" if level else "", max_results=1000
    )


def log_study(tracker: Tracker, measures: dict[str, Measure]) -> RunLog:
    with (
        tracker.sweep("demo", "study") as sweep,
        tracker.trial(TRIAL, sweep.run_id) as trial,
        tracker.leaf(LEAF, trial.run_id) as leaf,
    ):
        leaf.log_measures(measures)
        leaf.log_curve("train.fvu", [(step, 1 / (step + 1)) for step in range(0, 1100)])
        trial.log_layer_means({"layer 9": measures, "layer 12": measures})
    return leaf


M = {
    "missing_share": Measure(
        0.55, null=1.0, ceiling=0.1, ci=(0.42, 0.68), kappa=0.5, n=30, kappa_ci=(0.36, 0.64)
    ),
    "cka": undefined("8 minibatches are needed, 3 are there"),
}


@both_stores
def test_trials_nest_below_the_sweep_leaves_lie_flat_and_name_their_trial(tracker: Tracker):
    log_study(tracker, M)
    (sweep,), (trial,), (leaf,) = (all_runs(tracker, level) for level in ("sweep", "trial", "leaf"))
    assert "mlflow.parentRunId" not in leaf.data.tags and leaf.data.tags["trial"] == trial.info.run_id
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert {r.info.status for r in (sweep, trial, leaf)} == {"FINISHED"}


def test_leaf_has_exactly_the_named_parameters(tracker: Tracker):
    log_study(tracker, M)
    (leaf,) = all_runs(tracker, "leaf")
    assert leaf.data.params == {
        "adapter": "r4", "rank": "4", "layer": "9", "d_sae": "256", "k": "8", "architecture": "topk",
        "seed": "0",
        "reference": "toy reference (20,000 tokens)",
    }  # fmt: skip


def test_measures_become_named_metrics_and_undefined_a_tag_with_its_reason(tracker: Tracker):
    log_study(tracker, M)
    (leaf,) = all_runs(tracker, "leaf")
    named = {k: v for k, v in leaf.data.metrics.items() if k != "train.fvu"}
    assert named == {
        "missing_share": 0.55, "missing_share.null": 1.0, "missing_share.ci_low": 0.42,
        "missing_share.ci_high": 0.68,
    }  # fmt: skip
    assert leaf.data.tags["cka"] == "undefined: 8 minibatches are needed, 3 are there"


def test_nan_never_becomes_a_metric(tracker: Tracker):
    leaf = log_study(tracker, M)
    leaf.log_curve("train.loss", [(0, 1.0), (1, float("nan")), (2, 0.5)])
    data = tracker.client.get_run(leaf.run_id).data
    assert [(m.step, m.value) for m in tracker.client.get_metric_history(leaf.run_id, "train.loss")] == [
        (0, 1.0),
        (2, 0.5),
    ]
    assert data.tags["train.loss"] == "1 of 3 points were not finite and are left out"


@both_stores
def test_a_resumed_study_reuses_its_runs_and_adds_nothing_to_their_histories(tracker: Tracker):
    leaf = log_study(tracker, M)
    before = {r.info.run_id: r.info.end_time for r in all_runs(tracker)}
    assert log_study(again(tracker), M).run_id == leaf.run_id
    assert {r.info.run_id: r.info.end_time for r in all_runs(tracker)} == before
    assert len(tracker.client.get_metric_history(leaf.run_id, "train.fvu")) == 1100
    assert len(tracker.client.get_metric_history(leaf.run_id, "missing_share")) == 1


def test_a_changed_value_becomes_the_current_one_and_a_defined_one_loses_its_tag(tracker: Tracker):
    leaf = log_study(tracker, M)
    log_study(again(tracker), {"missing_share": Measure(0.30), "cka": Measure(0.2)})
    data = tracker.client.get_run(leaf.run_id).data
    assert (data.metrics["missing_share"], data.metrics["cka"]) == (0.30, 0.2)
    assert "cka" not in data.tags


def test_another_reference_or_content_is_another_leaf(tracker: Tracker):
    with tracker.sweep("demo", "study") as sweep, tracker.trial(TRIAL, sweep.run_id) as trial:
        points = [
            LEAF,
            TRIAL.leaf(9, 0, "gemma scope"),
            LeafPoint("r4", 9, 256, 8, "topk", 0, 4, LEAF.reference, content="other"),
        ]
        ids = set()
        for point in points:
            with tracker.leaf(point, trial.run_id) as leaf:
                ids.add(leaf.run_id)
    assert len(ids) == 3


@both_stores
def test_a_trial_of_which_nothing_came_is_a_failed_run_until_it_succeeds(tracker: Tracker):
    with tracker.sweep("demo", "study") as sweep:
        tracker.failed_trial(TRIAL, sweep.run_id, "DictionaryError: all rows are equal")
    (trial,) = all_runs(tracker, "trial")
    assert (trial.info.status, trial.data.tags["error"]) == ("FAILED", "DictionaryError: all rows are equal")
    assert trial.data.params["adapter"] == "r4" and trial.data.tags["mlflow.parentRunId"] == sweep.run_id
    assert {r.info.status for r in all_runs(tracker, "sweep")} == {"FINISHED"}
    log_study(again(tracker), M)
    (after,) = all_runs(tracker, "trial")
    assert (
        after.info.run_id == trial.info.run_id
        and after.info.status == "FINISHED"
        and "error" not in after.data.tags
    )


def test_an_error_ends_every_open_run_as_failed_and_a_later_success_clears_it(tracker: Tracker):
    with (
        pytest.raises(ZeroDivisionError),
        tracker.sweep("demo", "study") as sweep,
        tracker.trial(TRIAL, sweep.run_id) as trial,
        tracker.leaf(LEAF, trial.run_id),
    ):
        raise ZeroDivisionError("no tokens")
    assert {r.info.status for r in all_runs(tracker)} == {"FAILED"}
    assert all_runs(tracker, "leaf")[0].data.tags["error"] == "ZeroDivisionError: no tokens"
    log_study(again(tracker), M)
    assert {r.info.status for r in all_runs(tracker)} == {"FINISHED"}
    assert not any("error" in r.data.tags for r in all_runs(tracker))


def test_a_run_whose_process_died_does_not_stay_running(tracker: Tracker):
    with tracker.sweep("demo", "study") as sweep:
        again(tracker).client  # noqa: B018
        context = tracker.trial(TRIAL, sweep.run_id)
        context.__enter__()  # never left: its process was killed
    (trial,) = all_runs(tracker, "trial")
    assert trial.info.status == "FAILED"


@both_stores
def test_a_kill_between_creation_and_record_makes_no_second_run(tracker: Tracker):
    leaf = log_study(tracker, M)
    record = tracker.storage.read_json("tracking.json")
    tracker.storage.write_json("tracking.json", record | {"runs": {}})
    assert log_study(again(tracker), M).run_id == leaf.run_id
    assert len(all_runs(tracker)) == 3
    assert leaf.run_id in str(tracker.storage.read_json("tracking.json"))


@pytest.mark.slow
def test_a_study_that_was_killed_ends_with_the_same_runs_and_none_running(tracker: Tracker):
    program = (
        "import os, signal, sys, pickle\nfrom tests.tracking.test_tracker import LEAF, TRIAL\ntracker ="
        f" pickle.loads({pickle.dumps(tracker)!r})\nwith tracker.sweep('demo', 'study') as s,"
        " tracker.trial(TRIAL, s.run_id) as t, tracker.leaf(LEAF, t.run_id):\n    os.kill(os.getpid(),"
        " signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    before = {r.info.run_id for r in all_runs(tracker)}
    assert len(before) == 3
    with tracker.sweep("demo", "study"):
        assert {r.info.status for r in all_runs(tracker)} == {"KILLED", "RUNNING"}
    log_study(tracker, M)
    assert {r.info.run_id: r.info.status for r in all_runs(tracker)} == dict.fromkeys(before, "FINISHED")


def test_a_run_deleted_by_hand_is_made_anew(tracker: Tracker):
    leaf = log_study(tracker, M)
    tracker.client.delete_run(leaf.run_id)
    assert log_study(again(tracker), M).run_id != leaf.run_id


def test_layer_means_stand_on_the_trial_and_name_what_they_leave_out(tracker: Tracker):
    with tracker.sweep("demo", "study") as sweep, tracker.trial(TRIAL, sweep.run_id) as trial:
        trial.log_layer_means({
            "layer 9": {"missing_share": Measure(0.4, null=1.0), "cka": undefined("few")},
            "layer 12": {"missing_share": Measure(0.6, null=0.9), "cka": Measure(0.5)},
            "layer 15": {"missing_share": undefined("PR 2.1 is below 4")},
        })  # fmt: skip
    data = tracker.client.get_run(trial.run_id).data
    assert data.metrics["missing_share"] == pytest.approx(0.5)
    assert data.metrics["missing_share.null"] == pytest.approx(0.95)
    assert data.tags["missing_share.mean_of"] == "2 of 3; undefined at layer 15 (PR 2.1 is below 4)"
    assert data.metrics["cka"] == 0.5
    with again(tracker).sweep("demo", "study") as sweep, again(tracker).trial(TRIAL, sweep.run_id) as trial:
        trial.log_layer_means({"layer 9": {"missing_share": Measure(0.4, null=1.0), "cka": Measure(0.4)}})
    assert not any(tag.endswith(".mean_of") for tag in tracker.client.get_run(trial.run_id).data.tags)


@both_stores
def test_a_table_is_replaced_and_opens_as_mlflows_own(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracker.sweep("demo", "study") as sweep:
        for value in (0.1, 0.2):
            sweep.log_table([{"metric": "cka", "value": value, "reason": ""}], "measures.json")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", tracker.uri)
    table = tracker.client.load_table(tracker.experiment_id, "measures.json", [sweep.run_id])
    assert table.to_dict("records") == [{"metric": "cka", "value": 0.2, "reason": ""}]


@both_stores
def test_a_dictionary_is_one_model_with_its_files_and_its_run(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "cfg.json").write_text("{}")
    for _ in range(2):
        leaf = log_study(tracker, M)
        leaf.log_model("dictionary", lambda: tmp_path / "files", "abc", {"layer": 9})
    (model,) = tracker.client.search_logged_models([tracker.experiment_id])
    tracker.client.delete_tag(leaf.run_id, "content.dictionary")  # as a kill before the last call leaves it
    leaf.log_model("dictionary", lambda: tmp_path / "files", "abc", {"layer": 9})
    (model,) = tracker.client.search_logged_models([tracker.experiment_id])
    assert (model.source_run_id, model.params["layer"], str(model.status)) == (leaf.run_id, "9", "READY")
    outputs = tracker.client.get_run(leaf.run_id).outputs.model_outputs
    assert model.model_id in [m.model_id for m in outputs]
    assert [a.path for a in tracker.client.list_logged_model_artifacts(model.model_id)] == ["cfg.json"]


def test_datasets_carry_digests_and_counts(tracker: Tracker) -> None:
    with tracker.sweep("demo", "study") as sweep:
        sweep.log_datasets({"domain": ("abc", {"fit_tokens": 5})})
    (read,) = tracker.client.get_run(sweep.run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest, read.dataset.profile) == (
        "domain",
        "abc",
        '{"fit_tokens": 5}',
    )


def test_a_second_study_in_the_experiment_leaves_the_views_of_the_first(tracker: Tracker) -> None:
    log_study(tracker, M)
    first = tracker.save_views("demo", "missing_share", ["kl.domain"])
    assert tracker.save_views("demo", "missing_share", ["kl.domain"]) == first, (
        "the same study, the same links"
    )
    tracker.storage.write_json("tracking.json", {"study": "f" * 32, "runs": {}})
    second = again(tracker).save_views("demo", "missing_share", ["kl.domain"])
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    keys = [
        link.partition("viewStateShareKey=")[2].partition("&")[0] for link in {**first, **second}.values()
    ]
    assert len(set(keys)) == 6 and all(f"mlflow.sharedViewState.{key}" in tags for key in keys)
    assert all("workflowType=machine_learning" in link for link in first.values())


@both_stores
def test_artifacts_and_texts_arrive(tracker: Tracker, tmp_path: Path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.svg").write_text("<svg/>")
    with tracker.sweep("demo", "study") as sweep:
        sweep.log_text("layers: [9]\n", "config.yaml")
        sweep.log_artifacts(tmp_path / "figures", "figures")
    names = {
        a.path for folder in ("", "figures") for a in tracker.client.list_artifacts(sweep.run_id, folder)
    }
    assert {"config.yaml", "figures/a.svg"} <= names


def test_embedded_artifacts_stay_under_the_root_and_never_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    tracker = Tracker(TrackingConfig(), Storage("study"))
    monkeypatch.chdir(tmp_path)  # a worker's working directory is another one
    with again(tracker).sweep("demo", "study") as sweep:
        sweep.log_text("x", "x.txt")
    assert list(cwd.iterdir()) == [cwd / "study"]
    assert {p.name for p in tmp_path.iterdir()} == {"cwd"}
    assert list((cwd / "study" / "mlflow-artifacts").rglob("x.txt"))
    assert "mlruns" not in tracker.client.get_experiment("0").artifact_location


def test_a_moved_study_keeps_its_runs_and_writes_beside_its_new_store(tmp_path: Path):
    with Tracker(TrackingConfig(), Storage(str(tmp_path / "old"))).sweep("demo", "study") as before:
        before.log_text("1", "1.txt")
    shutil.move(tmp_path / "old", tmp_path / "new")
    program = (  # another process: within one, MLflow remembers where a run's artifacts lie
        "from deltasae_ray.storage import Storage; from deltasae_ray.tracking import *\nwith"
        f" Tracker(TrackingConfig(), Storage({str(tmp_path / 'new')!r})).sweep('demo', 'study') as s:"
        " s.log_text('2', '2.txt')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    moved = Tracker(TrackingConfig(), Storage(str(tmp_path / "new")))
    assert [r.info.run_id for r in all_runs(moved)] == [before.run_id]
    assert not (tmp_path / "old").exists()
    assert {p.name for p in (tmp_path / "new" / "mlflow-artifacts").rglob("*.txt")} == {"1.txt", "2.txt"}


def _open_store(root: str) -> str:
    return Tracker(TrackingConfig(), Storage(root)).client.create_run("0").info.run_id


@pytest.mark.slow
def test_processes_that_create_the_embedded_store_at_once_do_not_break_it(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_open_store, [str(tmp_path / "root")] * 3))) == 3


def test_creating_the_embedded_store_is_silent(tmp_path: Path):
    program = (
        "from deltasae_ray.storage import Storage; from deltasae_ray.tracking import *\nwith"
        f" Tracker(TrackingConfig(), Storage({str(tmp_path / 'root')!r})).sweep('demo', 'x') as s:"
        " s.set_tags({'a': 'b'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_tag_may_be_named_after_any_folder(tracker: Tracker) -> None:
    with tracker.sweep("demo", "x") as sweep:
        sweep.set_tags({"verdict.my adapter (1) #2 é": "VISIBLE", f"verdict.{'x' * 255}": "b"})
    tags = tracker.client.get_run(sweep.run_id).data.tags
    assert tags["verdict.my adapter _1_ _2 é"] == "VISIBLE" and tags[f"verdict.{'x' * 242}"] == "b"


def test_importing_the_module_does_not_import_mlflow():
    program = "import sys, deltasae_ray.tracking; raise SystemExit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_object_store_root_without_a_server_is_a_clear_error():
    with pytest.raises(ConfigError, match="tracking.uri"):
        Tracker(TrackingConfig(), Storage("s3://bucket/study?region=eu-west-1"))


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "localhost:5000"])
def test_a_uri_that_is_no_server_is_a_clear_error(uri: str):
    with pytest.raises(ConfigError, match="http://host:port"):
        TrackingConfig(uri=uri)


def test_a_server_that_is_not_there_is_a_clear_error_at_once(tmp_path: Path):
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), Storage(str(tmp_path)))
    start = time.monotonic()
    with pytest.raises(ConfigError, match="does not answer"):
        tracker.client  # noqa: B018
    assert time.monotonic() - start < 15


def test_a_deleted_experiment_is_a_clear_error(tmp_path: Path):
    tracker = Tracker(TrackingConfig(), Storage(str(tmp_path)))
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ConfigError, match="was deleted"):
        again(tracker).experiment_id  # noqa: B018


@both_stores
def test_long_reasons_are_cut_to_what_a_server_takes(tracker: Tracker):
    leaf = log_study(tracker, {"fvu": undefined("x" * 20_000)})
    assert tracker.client.get_run(leaf.run_id).data.tags["fvu"].endswith("…")


def test_a_root_with_spaces_and_signs_in_its_name_keeps_its_runs_and_artifacts(
    empty_store: Path, tmp_path: Path
):
    root = tmp_path / "a b#c;d=é雪&$5"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    log_study(tracker := Tracker(TrackingConfig(), Storage(str(root))), M)
    (sweep,) = all_runs(again(tracker), "sweep")
    RunLog(tracker.client, sweep.info.run_id).log_text("x: 1", "config.yaml")
    assert [path.read_text() for path in (root / "mlflow-artifacts").rglob("config.yaml")] == ["x: 1"]
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


@pytest.mark.parametrize("name", ["50%", "a%20b", "what?", "a?b=c"])
def test_a_root_whose_name_no_address_can_hold_is_refused_at_once(name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"storage\.root=.*rename the folder, or set tracking\.uri"):
        Tracker(TrackingConfig(), Storage(str(tmp_path / name)))
    Tracker(TrackingConfig(uri="http://mlflow:5000"), Storage(str(tmp_path / name)))
    assert not list(tmp_path.iterdir())


def test_a_store_that_was_altered_to_put_a_runs_files_elsewhere_is_refused_and_nothing_is_written_there(
    tracker: Tracker, tmp_path: Path
) -> None:
    with tracker.sweep("demo", "study") as log:
        log.log_text("before", "report.html")
    victim = tmp_path / "victim"
    victim.mkdir()
    place = next(tracker.storage.local("mlflow-artifacts").rglob("report.html"))
    place.unlink()
    place.symlink_to(victim / "report.html")
    with (
        pytest.raises(StorageError, match="leads out of .* by a symlink"),
        again(tracker).sweep("demo", "study") as log,
    ):
        log.log_text("after", "report.html")
    place.unlink()
    for uri in (victim.as_uri(), f"{place.parent.parent.parent.as_uri()}/../../../victim"):
        with sqlite3.connect(tracker.storage.local("mlflow.db")) as connection:
            connection.execute("UPDATE runs SET artifact_uri = ?", (uri,))
        with (
            pytest.raises(StorageError, match=r"mlflow\.db|leads out"),
            again(tracker).sweep("demo", "study") as log,
        ):
            log.log_text("after", "report.html")
    assert not list(victim.iterdir())


def test_the_lock_of_the_store_empties_no_file_that_a_symlink_of_its_name_points_to(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    root = tmp_path / "root"
    root.mkdir()
    (root / ".mlflow.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="leads out of .* by a symlink"):
        Tracker(TrackingConfig(), Storage(str(root))).client  # noqa: B018
    assert (tmp_path / "victim").read_text() == "mine"
