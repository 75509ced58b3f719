"""Hashes of large files are remembered, and never outlive a change of the file."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from deltasae_ray import fingerprints
from deltasae_ray.fingerprints import file_sha256, remembered_sha256


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were hashed, in order; files of 1000 bytes are large, and settled after 50 ms."""
    found: list[Path] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "LARGE", 1000)
    monkeypatch.setattr(fingerprints, "_SETTLED_S", 0.05)
    monkeypatch.setattr(fingerprints, "file_sha256", lambda path: (found.append(path), file_sha256(path))[1])
    return found


def test_a_large_file_is_hashed_once_and_again_after_every_change(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 2000)
    time.sleep(0.1)
    first = remembered_sha256(path)
    assert [remembered_sha256(path) for _ in range(3)] == [first] * 3 and len(reads) == 1
    link = tmp_path / "link"
    link.symlink_to(path)
    assert remembered_sha256(link) == first and len(reads) == 1, "what the hub keeps are links"
    before = path.stat()
    path.write_bytes(b"b" * 2000)
    os.utime(
        path, ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # as a copy that keeps times does: only ctime tells
    time.sleep(0.1)
    assert remembered_sha256(path) == file_sha256(path) != first


def test_a_lock_that_a_stopped_process_keeps_is_not_waited_for_without_end(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 2000)
    time.sleep(0.1)
    expected = remembered_sha256(path)
    path.touch()
    time.sleep(0.1)
    (held,) = (tmp_path / "cache").rglob("*.lock")
    monkeypatch.setattr(fingerprints, "_LOCK_S", 0.2)
    with held.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remembered_sha256(path) == expected
        assert not fingerprints.locked(held.open(), 0.1)


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_SETTLED_S", 60.0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 2000)
    remembered_sha256(path), remembered_sha256(path)
    assert len(reads) == 2 and not list((tmp_path / "cache").rglob("*.json"))


def test_a_cache_that_cannot_be_written_or_is_damaged_only_costs_time(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 2000)
    time.sleep(0.1)
    expected = remembered_sha256(path)
    (note,) = (tmp_path / "cache").rglob("*.json")
    note.write_text('{"state":')
    assert remembered_sha256(path) == expected and len(reads) == 2
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert remembered_sha256(path) == expected and len(reads) == 3
