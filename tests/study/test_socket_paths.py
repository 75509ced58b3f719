"""Temporary folders that leave no room for Ray's sockets."""

import os

import pytest

from deltasae_ray.errors import ConfigError
from deltasae_ray.study.cluster_check import check_socket_paths
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.run import run

ROOM = 107 - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")


@pytest.mark.parametrize("word", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_is_too_long_is_refused_before_anything_is_read(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv(word, "/" + "t" * ROOM)
    with pytest.raises(
        ConfigError, match=rf"{word}=.*leave room for {ROOM}: set RAY_TMPDIR to a shorter folder"
    ):
        run("sweep", StudyConfig())
    monkeypatch.setenv(word, "/" + "é" * ((ROOM + 1) // 2))  # bytes count, not characters
    with pytest.raises(ConfigError):
        check_socket_paths()
    monkeypatch.setenv(word, "/" + "t" * (ROOM - 1))
    check_socket_paths()
    monkeypatch.setenv(word, "/" + "t" * ROOM)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # whose sockets are there already
    check_socket_paths()
