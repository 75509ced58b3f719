"""A stream on real Ray, two gangs beside a fit worker: each is killed in the middle, and the dictionaries are
those of a calm study."""

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deltasae_ray.fit.run import fit_job
from deltasae_ray.runtime.units import run_units
from deltasae_ray.shards.spool import read_board
from deltasae_ray.storage import Storage
from deltasae_ray.study import streaming
from deltasae_ray.study.inputs import harvest_of, open_study
from deltasae_ray.study.state import StudyState
from deltasae_ray.study.streaming import Windows, fit_stream
from tests.study.streamed import SMALL, config, digests, study_words, without_ray

pytestmark = pytest.mark.slow
SHARES = ("gangs.cpus_per_gang=0.5",)
GANG, RANK, FIT_WORKER = "MapBatches(Gang)", "ray::Rank", "RayTrainWorker"


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


@pytest.mark.prove
def test_a_killed_gang_of_two_and_a_killed_fit_worker_leave_no_trace_in_a_stream(
    ray_cluster: None,
    tiny_model: Path,
    tiny_adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def words(root: str) -> list[str]:
        return study_words(tiny_model, tmp_path / root, tiny_adapters[0], *SMALL, *SHARES, "gangs.gangs=2")

    _, _, calm = without_ray(config(words("calm")), monkeypatch, side_by_side=True)
    shutil.copytree(tmp_path / "calm", tmp_path / "killed")
    calm.fit()
    study, made, way = without_ray(config(words("killed")), monkeypatch, side_by_side=True)
    monkeypatch.setattr("deltasae_ray.harvest.run.run_units", run_units)
    monkeypatch.setattr(streaming, "fit_job", fit_job)
    gang, worker = Killer(GANG, lambda: ready(way, 1)), Killer(FIT_WORKER, lambda: ready(way, 2))
    fit_stream(study, made)
    assert gang.killed.is_set() and worker.killed.is_set() and len(way.plan) >= 4
    assert digests(way) == digests(calm) and len(digests(way)) == len(way.points)
    assert study.storage.list(way.spool) == []


@pytest.mark.prove
def test_a_killed_rank_of_a_gang_that_shares_a_model_leaves_no_trace_in_a_stream(
    ray_cluster: None,
    tiny_model: Path,
    tiny_adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "holds_harvest_and_fit", lambda _: True)
    found = []
    for name in (
        "calm",
        "killed",
    ):  # both on Ray: a pass of base and adapters together rounds otherwise than one pass each
        cfg = config(
            study_words(
                tiny_model,
                tmp_path / name,
                tiny_adapters[0],
                *SMALL,
                *SHARES,
                "gangs.ranks=2",
                "model.sharding=zero3",
            )
        )
        study = open_study(cfg, Storage(cfg.storage.root))
        made = StudyState(by_tune=True, adapters=study.given, harvest=harvest_of(study, study.given))
        way = Windows.of(study, made)
        rank = Killer(RANK, lambda way=way: ready(way, 1)) if name == "killed" else None
        fit_stream(study, made)
        assert rank is None or rank.killed.is_set()
        found.append(digests(way))
    assert found[0] == found[1] and found[0]
