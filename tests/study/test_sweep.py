"""Every station on a tiny model, by the commands a user types: as a submitted job and alone, interrupted,
again, and with more asked for."""

import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import deltasae_ray as ds
from deltasae_ray.shards import ShardSet, open_shards
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from deltasae_ray.study.main import main
from tests.command.installed import installed
from tests.processes import end_orphans
from tests.study.submitted import REPOSITORY, ray_head, submit
from tests.study.words import WORDS as TINY

pytestmark = pytest.mark.slow
WORDS = (*TINY, "diverge.controls=[fast,seeds]")
"""With a second seed of every dictionary, without which no latent is judged."""
MEASURED = ("behaviour", "measures", "audit", "visibility", "weights")
COLUMNS = {
    "adapter",
    "layer",
    "d_sae",
    "k",
    "seed",
    "metric",
    "variant",
    "over_seeds",
    "value",
    "null",
    "ceiling",
    "ci_low",
    "ci_high",
    "p",
    "kappa",
    "reason",
}


PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED000000002", "AWS_SECRET_ACCESS_KEY": "plantedSecretOfAws0002",
    "AWS_SESSION_TOKEN": "plantedSessionOfAws0002",
    "HF_TOKEN": "hf_plantedTokenOfTheHub0002", "WANDB_API_KEY": "plantedkeyofwandb0002",
}  # fmt: skip


def words(model: Path, root: Path | str, *more: str) -> list[str]:
    return [f"model.base={model}", f"storage.root={root}", *WORDS, *more]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Its environment, and that of every driver in this file, holds secrets, and a place for all studies."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        patch.setenv("DELTASAE_STORAGE_ROOT", str(tmp_path_factory.mktemp("studies")))
        with ray_head() as env:
            yield env


@pytest.fixture(scope="module")
def study(head: dict[str, str], tiny_model: Path) -> tuple[Path, str]:
    """Submitted to a cluster, which knows where studies lie: its root, and what was printed."""
    root = Path(head["DELTASAE_STORAGE_ROOT"], "runs/study")
    done = submit(head, "--", "python", "jobs/sweep.py", *words(tiny_model, "runs/study"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return root, done.stdout


def test_the_sweep_prints_plan_table_and_where_the_report_is(study: tuple[Path, str]) -> None:
    root, printed = study
    for said in ("Plan", "tokens", "shards on disk", "planned", "actual", str(root / "report.html")):
        assert said in printed
    assert "max_restarts" not in printed, "Ray tells of restarts, which a user can do nothing about"


def test_results_are_files_and_nothing_in_them_is_nan(study: tuple[Path, str]) -> None:
    root, _ = study
    rows = json.loads((root / "divergence.json").read_text())
    assert {row["layer"] for row in rows} == {1, 2} and set(
        pq.read_table(root / "divergence.parquet").column_names
    ) >= COLUMNS
    measures = [row["measure"] for row in rows]
    assert all(m["reasons"] for m in measures if m["value"] is None)
    numbers = [
        n for m in measures for c in ("value", "null", "ceiling", "p", "kappa") if (n := m[c]) is not None
    ]
    numbers += [n for m in measures for n in m["ci"] or ()]
    assert numbers and all(math.isfinite(n) for n in numbers)
    assert pq.read_table(root / "divergence.parquet").num_rows == len(rows)
    page = (root / "report.html").read_text()
    assert "toy reference (" in page and "nan" not in page.lower().split("<body")[0]
    assert list(root.glob("dictionaries/*/cfg.json"))
    assert len(list(root.glob("visibility/*.json"))) == 3 * 2, (
        "the adapter and two random ones, at two layers"
    )
    assert any(row["metric"] == "not_visible_share" and row["corpus"] == "kjv" for row in rows)
    assert pq.read_table(root / "weights.parquet").num_rows > 0
    assert "This closes no case" in page and "Not tested:" in page, "400 tokens change nothing"
    assert not list(root.glob("lease-*")), "a driver that has ended holds nothing"


def test_no_secret_of_the_environment_is_in_the_root_in_print_or_in_rays_logs(
    study: tuple[Path, str], head: dict[str, str]
) -> None:
    root, printed = study
    folders = (root, Path(head["RAY_TMPDIR"]))
    held = [
        p
        for folder in folders
        for p in folder.rglob("*")
        if p.is_file() and any(s.encode() in p.read_bytes() for s in PLANTED.values())
    ]
    assert held == [] and not any(s in printed for s in PLANTED.values())
    assert list(folders[1].rglob("runtime_env_agent.log")), "Ray logs the environments that it makes"


def test_shards_open_from_the_root(study: tuple[Path, str]) -> None:
    shards = open_shards(str(study[0]))
    assert "r2" in shards.adapters and shards.read(1, "r2", split="eval").shape[1] == 32


def test_mlflow_holds_leaves_with_parameters_nulls_and_few_metrics_and_none_is_running(
    study: tuple[Path, str],
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study[0] / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    leaves = [r for r in runs if r.data.tags.get("level") == "leaf"]
    assert {r.data.params["layer"] for r in leaves} == {"1", "2"}
    assert all(
        {"adapter", "rank", "layer", "d_sae", "k", "architecture", "seed", "reference"} <= set(r.data.params)
        for r in leaves
    )
    assert all("fvu" in r.data.metrics for r in leaves)
    assert any(name.endswith(".null") for name in leaves[0].data.metrics)
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {r.data.tags["level"] for r in runs} == {"sweep", "trial", "adapter", "leaf"}
    assert max(len(r.data.metrics) for r in runs) <= 25, "the page makes a column of every metric"
    models = client.search_logged_models(experiments)
    assert {m.source_run_id for m in models} == {r.info.run_id for r in leaves}
    (sweep,) = (r for r in runs if r.data.tags["level"] == "sweep")
    assert len({d.dataset.digest for d in sweep.inputs.dataset_inputs}) == 2
    links = [line.split(": ", 1)[1] for line in study[1].splitlines() if "viewStateShareKey=" in line]
    tags = client.get_experiment(sweep.info.experiment_id).tags
    assert len(links) == 3 and all(
        f"mlflow.sharedViewState.{link.partition('viewStateShareKey=')[2].partition('&')[0]}" in tags
        for link in links
    )


# make test interrupts trainings in tests/adapt, and kills the driver of fits in tests/fit
@pytest.mark.parametrize("ctrl_c", [False, pytest.param(True, marks=pytest.mark.prove)])
def test_a_killed_study_and_the_same_command_again_give_the_bytes_of_a_calm_one(
    study: tuple[Path, str], tiny_model: Path, tmp_path: Path, ctrl_c: bool
) -> None:
    """Killed in its harvest, and interrupted in its trials. On a Ray of its own each time, the last by the
    command of an installed wheel, from another folder. The adapter is there."""
    command = words(tiny_model, tmp_path)
    shutil.copytree(study[0] / "adapters", tmp_path / "adapters")
    first = start(command, tmp_path / "first.log")
    until(lambda: any(tmp_path.glob("harvest/*/rows/*.json")), first)
    first.kill()  # the driver alone: nothing tells its Ray
    first.wait()
    shards = {p: p.stat().st_mtime_ns for p in harvested_files(tmp_path)}
    assert 0 < len(shards) < len(harvested_files(study[0])), "the kill fell outside the harvest"
    assert left_of(tmp_path / "first.log") == []

    counted = interrupted_in_its_trials(command, tmp_path) if ctrl_c else {}

    # What is measured of dictionaries of the same bytes is found by their content: that is made once.
    for folder in MEASURED:
        shutil.copytree(study[0] / folder, tmp_path / folder)
    program = [str(installed(tmp_path / "installed")), "sweep"]
    quick = str(REPOSITORY / "tests" / "quick")
    third = start(command, tmp_path / "third.log", program, tmp_path, PYTHONPATH=quick)
    assert third.wait(900) == 0, (tmp_path / "third.log").read_text()[-3000:]
    assert left_of(tmp_path / "third.log") == []
    for folder in MEASURED:
        assert {p.name for p in (tmp_path / folder).rglob("*")} == {
            p.name for p in (study[0] / folder).rglob("*")
        }
    assert (tmp_path / "divergence.json").read_bytes() == (study[0] / "divergence.json").read_bytes()
    calm, broken = (hashes(root) for root in (study[0], tmp_path))
    assert len(broken) > 20 and broken.items() <= calm.items()
    assert {p: p.stat().st_mtime_ns for p in shards} == shards, "a unit that counted was harvested again"
    assert {p: p.stat().st_mtime_ns for p in counted} == counted, "a dictionary that counted was fitted again"
    columns = harvested(tmp_path)
    assert len(columns) == len(set(columns)) and set(columns) == set(harvested(study[0])), "each unit once"


def interrupted_in_its_trials(command: list[str], root: Path) -> dict[Path, int]:
    """Runs the study up to its first trial, and ends it as Ctrl-C does; the dictionaries that counted by then,
    with their times of change in ns."""
    (own := root / "own").mkdir()
    second = start(command, root / "second.log", TMPDIR=str(own), RAY_TMPDIR="/tmp")
    until(lambda: any(own.glob("deltasae-tune-*/*/*")), second)  # Tune has begun
    counted = {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/manifest.json")}
    second.send_signal(signal.SIGINT)
    assert second.wait(300) == 130, (root / "second.log").read_text()[-3000:]
    assert "the same command continues" in (root / "second.log").read_text()
    assert counted, "the controls are fitted before the trials"
    assert left_of(root / "second.log") == []
    return counted


@pytest.mark.prove  # make test: above, a kill of a driver and the end of a whole study
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGHUP", "Ctrl-C"])
@pytest.mark.parametrize(
    ("during", "at_least"),
    [("harvest/*/rows/*.json", 1), ("ray/fit-*", 1), ("ray/fit-*", 2)],
    ids=["harvest", "controls", "trial"],
)
def test_a_minute_after_a_driver_was_ended_nothing_of_it_runs(
    tiny_model: Path, tmp_path: Path, during: str, at_least: int, end: str
) -> None:
    log = tmp_path / "driver.log"
    driver = start(words(tiny_model, tmp_path), log)
    until(lambda: len([*tmp_path.glob(during)]) >= at_least, driver)
    time.sleep(1)
    if end == "Ctrl-C":
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal sends it, to all that is in the foreground
    else:
        driver.send_signal(getattr(signal, end))
    assert driver.wait(60) == (130 if end == "Ctrl-C" else -getattr(signal, end)), log.read_text()[-3000:]
    assert left_of(log) == []


def left_of(log: Path) -> list[str]:
    """What still runs, a minute after the end of the driver that wrote this log, of all that it started; it
    is ended then."""
    return end_orphans("DELTASAE_TEST_LOG", str(log), within_s=60)


def start(
    command: list[str],
    log: Path,
    program: Sequence[str] = (sys.executable, "jobs/sweep.py"),
    cwd: Path = REPOSITORY,
    **environment: str,
) -> subprocess.Popen:
    """A sweep in a process group of its own, which its Ray shares. It hears Ctrl-C also where these tests run
    in the background."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [*program, *command], cwd=cwd, stdout=output, stderr=output,
            start_new_session=True,
            env={**os.environ, "DELTASAE_TEST_LOG": str(log), **environment},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def until(reached: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def hashes(root: Path) -> dict[str, str]:
    """Path below the root → sha256, of every shard and every dictionary's weights."""
    files = [*root.rglob("harvest/**/*.parquet"), *root.glob("dictionaries/*/sae_weights.safetensors")]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def made(root: Path) -> list[Path]:
    """Adapters, shards and dictionaries; not the tables, which are written anew each time, and MLflow's
    copies of them."""
    tables = ("divergence.parquet", "audit.parquet", "latents.parquet", "weights.parquet")
    return [p for p in root.rglob("*") if p.suffix in (".parquet", ".safetensors") and p.name not in tables]


def test_a_working_directory_travels_and_the_copy_finds_every_stage_done(
    head: dict[str, str], study: tuple[Path, str], tiny_model: Path
) -> None:
    written = {p: p.stat().st_mtime_ns for p in made(study[0])}
    command = shlex.join(["python", "jobs/fit.py", *words(tiny_model, study[0])])
    done = submit(head, "--working-dir", ".", "--", "bash", "-c", f"echo travelled: $(ls -A) && {command}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    travelled = next(line for line in done.stdout.splitlines() if line.startswith("travelled: ")).split()
    assert "jobs" in travelled and not {"runs", ".venv", ".git"} & set(travelled)
    assert "actual" in done.stdout and {p: p.stat().st_mtime_ns for p in written} == written


def test_a_job_without_words_on_a_cluster_that_names_no_place_is_refused_at_once(
    head: dict[str, str],
) -> None:
    unset = json.dumps({"env_vars": {"DELTASAE_STORAGE_ROOT": ""}})
    done = submit(head, "--runtime-env-json", unset, "--", "python", "jobs/sweep.py")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Plan" not in said, "before model and text are looked at"
    assert "storage.root='runs/demo' is relative" in said
    assert "DELTASAE_STORAGE_ROOT" in said and "DELTASAE_TRACKING_URI" in said


def test_a_second_run_makes_nothing_again_and_its_driver_reads_no_activations(
    study: tuple[Path, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    root, _ = study
    before = {p: p.stat().st_mtime_ns for p in made(root)}
    page = (root / "report.html").stat().st_mtime_ns

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError(
            "the driver reads activations"
        )  # tasks run in other processes, which read as they did

    monkeypatch.setattr(ShardSet, "read", refuse)
    options = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in WORDS)}
    again = ds.Study(str(tiny_model), root=str(root), options=options)
    assert again.run().page() == str(root / "report.html")
    assert {p: p.stat().st_mtime_ns for p in made(root)} == before
    assert (root / "report.html").stat().st_mtime_ns > page


def test_a_finished_study_is_read_from_python(study: tuple[Path, str]) -> None:
    root, printed = study
    finished = ds.Study(root=str(root))
    (verdict,) = finished.verdicts
    assert verdict.label in verdict.head and verdict.head.startswith("r2")
    table = finished.table()
    assert set(table.layer) == {1, 2} and "missing_share" in set(table.metric)
    assert len(finished.latents()) and "r2" in finished.shards().adapters
    shown = finished._repr_html_()
    assert "r2" in shown and verdict.label in shown and str(root / "report.html") in shown


# stages alone: tests/harvest/test_stages.py, tests/fit/test_run.py, tests/adapt/test_run.py
@pytest.mark.prove
def test_a_new_rank_a_new_layer_and_a_new_size_make_only_what_is_new(
    study: tuple[Path, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    root, _ = study
    before, columns = {p: p.stat().st_mtime_ns for p in made(root)}, harvested(root)
    monkeypatch.setattr(
        sys,
        "argv",
        ["fit.py", *words(tiny_model, root, "adapt.ranks=[2,4]", "layers=[1,2,3]", "fit.d_sae=[48,64]")],
    )
    main("fit", None)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    grown = harvested(root)
    assert len(grown) == len(set(grown)), "a column was harvested twice"
    # base, r2 and two random adapters at layers 1 and 2; then r4 and a random one of its rank, all but the second
    # random one of rank 2 at three layers
    assert set(columns) < set(grown) and len(grown) == len(columns) // 8 * (5 * 3 + 2)
    # two of each adapter, random ones too, and four of the base, at three layers in two sizes; what is left of the
    # second random one
    assert len(list(root.glob("dictionaries/*/manifest.json"))) == 2 * 3 * (2 + 2 + 2 * 2 + 4) + 2 * 2


def harvested_files(root: Path) -> list[Path]:
    """The shards that count."""
    (key,) = (p.parent.relative_to(root) for p in root.glob("harvest/*/harvest.json"))
    return [root / key / row.file for row in Manifest.load(Storage(str(root)), str(key)).rows]


def harvested(root: Path) -> list[tuple[str, str, str]]:
    """(unit, source, hookpoint) of every column that counts."""
    rows = Manifest.load(Storage(str(root)), json.loads((root / "study.json").read_text())["harvest"]).rows
    return [(row.unit, row.source, hookpoint) for row in rows for hookpoint in row.hookpoints]
