"""Every station on a tiny model, by the command a user types; then again, and with more asked for."""

import hashlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deltasae_ray.cli import parse
from deltasae_ray.errors import ConfigError, ResourceError
from deltasae_ray.shards import ShardSet, open_shards
from deltasae_ray.sweep.config import SHORTHAND, StudyConfig
from deltasae_ray.sweep.main import main
from tests.sweep.words import words

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
COLUMNS = {"adapter", "layer", "d_sae", "k", "seed", "metric", "value", "null", "ceiling", "ci_low", "ci_high", "p", "kappa", "reason"}


def job(name: str, *study: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *study], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=1100, check=False
    )


@pytest.fixture(scope="module")
def study(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("study")
    done = job("sweep", *words(tiny_model, root))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root, done.stdout


def test_the_sweep_prints_plan_table_and_where_the_report_is(study: tuple[Path, str]) -> None:
    root, printed = study
    for said in ("Plan", "tokens", "shards on disk", "planned", "actual", str(root / "report.html")):
        assert said in printed


def test_results_are_files_and_nothing_in_them_is_nan(study: tuple[Path, str]) -> None:
    root, _ = study
    rows = json.loads((root / "divergence.json").read_text())
    assert {row["layer"] for row in rows} == {1, 2} and set(rows[0]) >= COLUMNS
    assert all(row["reason"] for row in rows if row["value"] is None)
    numbers = [row[c] for row in rows for c in ("value", "null", "ceiling", "ci_low", "ci_high", "p", "kappa") if row[c] is not None]
    assert numbers and all(math.isfinite(n) for n in numbers)
    assert pq.read_table(root / "divergence.parquet").num_rows == len(rows)
    page = (root / "report.html").read_text()
    assert "toy reference (" in page and "nan" not in page.lower().split("<body")[0]
    assert list(root.glob("dictionaries/*/cfg.json"))


def test_shards_open_from_the_root(study: tuple[Path, str]) -> None:
    shards = open_shards(str(study[0]))
    assert "r2" in shards.adapters and shards.read(1, "r2", split="eval").shape[1] == 32


def test_mlflow_holds_leaves_with_parameters_and_nulls_and_none_is_running(study: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study[0] / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    leaves = [r for r in runs if r.data.tags.get("level") == "leaf"]
    assert {r.data.params["layer"] for r in leaves} == {"1", "2"}
    assert all({"adapter", "rank", "layer", "d_sae", "k", "architecture", "seed", "reference"} <= set(r.data.params) for r in leaves)
    assert all("fvu" in r.data.metrics for r in leaves)
    assert any(name.endswith(".null") for name in leaves[0].data.metrics)
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert {r.data.tags["level"] for r in runs} == {"sweep", "trial", "leaf"}


def test_ctrl_c_then_kill_then_the_same_command_gives_the_bytes_of_a_calm_study(
    study: tuple[Path, str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    command = words(tiny_model, tmp_path)
    first = start(command, tmp_path / "first.log")
    until(lambda: any(tmp_path.glob("harvest/*/rows/*.json")), first)
    first.send_signal(signal.SIGINT)
    assert first.wait(300) == 130
    assert "the same command continues" in (tmp_path / "first.log").read_text()

    second = start(command, tmp_path / "second.log")
    until(lambda: any(tmp_path.glob("dictionaries/*/manifest.json")), second)
    counted = {p: p.stat().st_mtime_ns for p in tmp_path.glob("dictionaries/*/manifest.json")}
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()

    monkeypatch.setattr(sys, "argv", ["sweep.py", *command])
    main("sweep", None)
    calm, broken = (hashes(root) for root in (study[0], tmp_path))
    assert len(broken) > 20 and broken.items() <= calm.items()
    assert {p: p.stat().st_mtime_ns for p in counted} == counted, "a dictionary that counted was fitted again"


def start(command: list[str], log: Path) -> subprocess.Popen:
    """A sweep in a process group of its own, which its Ray shares. It hears Ctrl-C also where these tests run in the background."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "jobs/sweep.py", *command], cwd=REPOSITORY, stdout=output, stderr=output, start_new_session=True,
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


def test_a_second_run_makes_nothing_again_and_its_driver_reads_no_activations(
    study: tuple[Path, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    root, _ = study
    made = [p for p in root.rglob("*") if p.suffix in (".parquet", ".safetensors") and p.name != "divergence.parquet"]
    before = {p: p.stat().st_mtime_ns for p in made}
    page = (root / "report.html").stat().st_mtime_ns

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the driver reads activations")  # tasks run in other processes, which read as they did

    monkeypatch.setattr(ShardSet, "read", refuse)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words(tiny_model, root)])
    main("sweep", None)
    assert {p: p.stat().st_mtime_ns for p in made} == before
    assert (root / "report.html").stat().st_mtime_ns > page


def test_a_new_size_fits_only_itself(
    study: tuple[Path, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    root, _ = study
    before = {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/sae_weights.safetensors")}
    shards = {p: p.stat().st_mtime_ns for p in root.rglob("harvest/**/*.parquet")}
    monkeypatch.setattr(sys, "argv", ["fit.py", *words(tiny_model, root, "fit.d_sae=[48,64]")])
    main("fit", None)
    after = {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/sae_weights.safetensors")}
    assert {p: after[p] for p in before} == before and len(after) == 2 * len(before)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("harvest/**/*.parquet")} == shards


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("layers=[9]", "HookpointError", "layers 0 to 3"),
        ("corpus.path=/no/such.jsonl", "CorpusError", "does not exist"),
        ("adapters=[/no/such/adapter]", "AdapterError", "cannot be downloaded"),
        ("reference=/no/such/folder", "DictionaryError", "/no/such/folder"),
        ("fit.workers=64", "ResourceError", "fit.workers"),
        ("adapt.gpus_per_worker=1", "ResourceError", "adapt.gpus_per_worker"),
        ("fit.d_sae=4096", "CorpusError", "fit.d_sae=4096 needs 4,096"),
        ("fit.k=64", "Value error", "fit.k=64 exceeds fit.d_sae=48"),
        ("gangs.ranks=2", "ConfigError", "zero3"),
        ("storage.root=s3://bucket/x", "ConfigError", "tracking.uri"),
    ],
)
def test_bad_input_is_a_typed_error_before_any_long_work(
    word: str,
    error: str,
    said: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ray_cluster: None,
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words(tiny_model, tmp_path / "root", word)])
    with pytest.raises(SystemExit) as ended:
        main("sweep", None)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and error in printed and said in printed
    assert not list((tmp_path / "root").rglob("*.parquet"))


def test_a_job_ends_with_the_code_and_the_line_of_its_error_alone(tiny_model: Path, tmp_path: Path) -> None:
    done = job("sweep", *words(tiny_model, tmp_path / "root", "layers=[9]"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("HookpointError: ")


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words(tiny_model, tmp_path / "root", "dry_run=true")])
    main("sweep", None)
    assert "Plan" in capsys.readouterr().out
    assert not (tmp_path / "root").exists()


def test_a_sweep_without_words_is_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, StudyConfig]] = []
    monkeypatch.setattr("deltasae_ray.sweep.run.run", lambda stage, cfg: ran.append((stage, cfg)))
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "jobs" / "sweep.py")])
    runpy.run_path(str(REPOSITORY / "jobs" / "sweep.py"), run_name="__main__")
    demo = parse(StudyConfig, [f"config={REPOSITORY / 'jobs' / 'configs' / 'demo.yaml'}"], shorthand=SHORTHAND, description="")
    assert ran == [("sweep", demo)] and demo != StudyConfig()


def test_errors_can_travel_between_processes() -> None:
    import pickle

    for error in (ConfigError("a"), ResourceError("b")):
        assert type(pickle.loads(pickle.dumps(error))) is type(error) and str(pickle.loads(pickle.dumps(error))) == str(error)
