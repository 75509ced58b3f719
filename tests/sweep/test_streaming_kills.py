"""A stream on real Ray, two gangs beside a fit worker: each is killed in the middle, and the dictionaries are those of a calm study."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deltasae_ray.fit.run import fit_points_to_windows
from deltasae_ray.gangs.run import run_units
from deltasae_ray.shards.spool import read_board
from deltasae_ray.sweep import streaming
from deltasae_ray.sweep.streaming import Windows, fit_stream
from tests.sweep.streamed import SMALL, config, digests, study_words, without_ray

pytestmark = pytest.mark.slow
SHARES = ("gangs.gangs=2", "gangs.cpus_per_gang=0.5", "fit.cpus_per_worker=0.5", "storage.window_tokens=300")
GANG, FIT_WORKER = "MapBatches(Gang)", "RayTrainWorker"


def processes(name: str) -> list[psutil.Process]:
    """Of this process' Ray."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found


class Killer:
    """Kills one process of a name as soon as the stream has come so far, in a thread of its own."""

    def __init__(self, name: str, reached: Callable[[], bool]) -> None:
        self.name, self.killed = name, threading.Event()
        self._reached = reached
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.killed.is_set():
            time.sleep(0.02)
            if self._reached() and (found := processes(self.name)):
                found[0].kill()
                self.killed.set()


def ready(way: Windows, index: int) -> bool:
    with suppress(OSError):  # the board is not there yet, or no more
        return read_board(way.study.storage, way.spool).ready >= index
    return False


def test_a_killed_gang_of_two_and_a_killed_fit_worker_leave_no_trace_in_a_stream(
    ray_cluster: None, tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(root: str) -> list[str]:
        return study_words(tiny_model, tmp_path / root, tiny_adapters[0], *SMALL, *SHARES)

    _, _, calm = without_ray(config(words("calm")), monkeypatch, side_by_side=True)
    calm.fit()
    study, made, way = without_ray(config(words("killed")), monkeypatch, side_by_side=True)
    monkeypatch.setattr("deltasae_ray.harvest.windows.run_units", run_units)
    monkeypatch.setattr(streaming, "fit_points_to_windows", fit_points_to_windows)
    monkeypatch.setattr(streaming, "holds_harvest_and_fit", lambda _: True)
    gang, worker = Killer(GANG, lambda: ready(way, 1)), Killer(FIT_WORKER, lambda: ready(way, 3))
    fit_stream(study, made)
    assert gang.killed.is_set() and worker.killed.is_set() and len(way.plan) > 5
    assert digests(way) == digests(calm) and len(digests(way)) == len(way.points)
    assert study.storage.list(way.spool) == []
