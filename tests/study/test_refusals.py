"""What ends a study before it has begun: errors, a dry run, and the words that stand for none."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deltasae_ray.cli import parse
from deltasae_ray.errors import ConfigError, ResourceError
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.main import main
from tests.analyses.monitors.test_folder import BAD, probe
from tests.study.submitted import REPOSITORY
from tests.study.words import words
from tests.tiny import D_MODEL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("layers=[9]", "HookpointError", "layers 0 to 3"),
        ("corpus.path=/no/such.jsonl", "CorpusError", "does not exist"),
        ("adapters=[/no/such/adapter]", "AdapterError", "is no folder of this machine"),
        ("reference=/no/such/folder", "DictionaryError", "/no/such/folder"),
        ("fit.workers=64", "ResourceError", "fit.workers"),
        ("fit.gpus_per_worker=1", "ResourceError", "fit.gpus_per_worker"),
        ("gangs.memory_gb=100000", "ResourceError", "gangs.memory_gb"),
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


BAD_MONITORS = {
    "wide": (lambda f: probe(f, weight=torch.ones(D_MODEL + 1)), "of width 33, and the base model's is 32"),
    "foreign": (
        lambda f: probe(f, "hookpoint: 30\nreads: last\n", weight=torch.ones(D_MODEL)),
        "reads blocks.30.hook_resid_post, which this study does not",
    ),
    "nan": BAD["nan"],
    "pickled": BAD["pickled"],
}


@pytest.mark.parametrize("name", BAD_MONITORS)
def test_a_bad_monitor_ends_a_study_before_its_harvest(
    name: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, said = BAD_MONITORS[name]
    make(tmp_path / name)
    given = words(tiny_model, tmp_path / "root", f"monitors=[{tmp_path / name}]")
    monkeypatch.setattr(sys, "argv", ["sweep.py", *given])
    with pytest.raises(SystemExit) as ended:
        main("sweep", None)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and "MonitorError" in printed and said in printed
    assert not list((tmp_path / "root").rglob("*.parquet"))


def test_a_job_ends_with_the_code_and_the_line_of_its_error_alone(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "jobs/sweep.py", *words(tiny_model, tmp_path / "root", "layers=[9]")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
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
    monkeypatch.setattr("deltasae_ray.study.run.run", lambda stage, cfg: ran.append((stage, cfg)))
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "jobs" / "sweep.py")])
    runpy.run_path(str(REPOSITORY / "jobs" / "sweep.py"), run_name="__main__")
    demo = parse(
        StudyConfig,
        [f"config={REPOSITORY / 'jobs' / 'configs' / 'demo.yaml'}"],
        shorthand=SHORTHAND,
        description="",
    )
    assert ran == [("sweep", demo)] and demo != StudyConfig()


def test_errors_can_travel_between_processes() -> None:
    import pickle

    for error in (ConfigError("a"), ResourceError("b")):
        assert type(pickle.loads(pickle.dumps(error))) is type(error) and str(
            pickle.loads(pickle.dumps(error))
        ) == str(error)
