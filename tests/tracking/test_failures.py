"""On a full disk the first error is the one told, and MLflow's failure to note it is one line below; on a
real small disk."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.study.main import main
from deltasae_ray.tracking.failures import noted_below

STUDY = """
import sys
from pathlib import Path
from deltasae_ray.errors import StorageError
from deltasae_ray.storage import Storage
from deltasae_ray.study import run
from deltasae_ray.study.main import main
from deltasae_ray.tracking import Tracker

def until_full(root):
    for size in (1 << 16, 1):  # down to the last page
        try:
            for i in range(100_000):
                (root / f"fill-{size}-{i}").write_bytes(bytes(size))
        except OSError:
            pass

def stage(name, cfg):
    storage = Storage(cfg.storage.root)
    root = storage.local("")
    tracker = Tracker(cfg.tracking, storage)
    experiment = tracker.experiment_id
    until_full(root)
    try:
        tracker.client.create_run(experiment)
    except StorageError as e:
        print(e)
    for filled in root.glob("fill-*"):
        filled.unlink()
    with Tracker(cfg.tracking, storage).sweep("demo", "content"):
        until_full(root)
        storage.write_bytes("harvest/unit-7.parquet", bytes(1 << 20))

run.run = stage
main("sweep", None)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_last_and_mlflow_s_own_failure_is_one_line_below(small_disk: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STUDY, f"storage.root={small_disk}"], capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    told, below = ended.stderr.strip().splitlines()
    assert (
        told.startswith(f"StorageError: {small_disk}/harvest/unit-7.parquet cannot be written")
        and "No space left" in told
    )
    assert below.startswith("  MLflow could not record this either: ") and "full" in below
    assert "mlflow.db failed at" in ended.stdout and "Free space" in ended.stdout, (
        "what MLflow meets first is a typed error of one line"
    )


def test_a_full_disk_under_files_of_ray_is_a_typed_error_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def writes(*_: object) -> None:
        try:
            with open("/dev/full", "w") as full:
                full.write("x" * 100_000)
        except OSError as e:
            raise RuntimeError("training failed") from e

    monkeypatch.setattr("deltasae_ray.study.run.run", writes)
    monkeypatch.setattr(sys, "argv", ["sweep.py", f"storage.root={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        main("sweep", None)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.strip().splitlines()[-1].startswith(
        "StorageError: a disk is full: [Errno 28] No space left"
    )
    assert "Traceback" not in said and "Free space" in said


def test_two_failures_after_an_error_are_one_note() -> None:
    first = StorageError("first")
    for _ in range(2):
        with noted_below(first):
            raise RuntimeError("http://ann:hunter2@host\nSQL")
    assert first.__notes__ == ["MLflow could not record this either: RuntimeError: http://***@host"]
