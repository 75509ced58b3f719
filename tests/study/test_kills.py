"""kill -9 of fit workers and drivers: a sweep ends with every trial, and no dictionary that had a checkpoint
begins again."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deltasae_ray.fit.run import FittedDictionary, fitted_points
from deltasae_ray.storage import Storage
from deltasae_ray.study.grid import grid_points
from deltasae_ray.study.search import search
from tests.fit.ledger import LEDGER, Event, events, started_over
from tests.fit.made import KEY, make_harvest
from tests.study.killed import CASES, GRID, LAYERS, sweep

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Victim:
    """A sweep that is killed and started again, on one root."""

    storage: Storage
    case: str

    @property
    def happened(self) -> list[Event]:
        return events(self.storage.local("ledger"))

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen]:
        """The sweep's driver; at the end it and its Ray are killed where they still run."""
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {LEDGER: str(self.storage.local("ledger")), "PYTHONPATH": str(REPOSITORY)}
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.study.killed", self.storage.root, self.case],
            cwd=REPOSITORY,
            env=environment,
        )
        try:
            yield driver
        finally:
            children = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            driver.kill()
            driver.wait()
            for child in children:  # this driver's own Ray, which would linger
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=30)

    def runs_until(self, driver: subprocess.Popen, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 600
        while not reached():
            assert driver.poll() is None, f"the sweep ended with {driver.poll()} before {what}"
            assert time.monotonic() < deadline, f"no {what} within 600 s"
            time.sleep(0.01)

    def ends(self) -> None:
        with self.running() as driver:
            assert driver.wait(800) == 0

    def fitted(self) -> list[FittedDictionary]:
        """Dictionaries of the sweep that are finished, with the settings that were chosen for them."""
        cfg = CASES[self.case]
        settings = (
            search(self.storage, KEY, GRID, LAYERS, cfg)[0]
            if cfg.search != "none"
            else dict.fromkeys(GRID, cfg)
        )
        return [
            f
            for trial, c in settings.items()
            for f in fitted_points(self.storage, KEY, grid_points(trial, LAYERS, c.seeds), c).values()
        ]

    def kept(self) -> int:
        return sum(event.what == "keeps" for event in self.happened)


@pytest.fixture
def victim(tmp_path: Path, request: pytest.FixtureRequest) -> Victim:
    storage = Storage(str(tmp_path / "root"))
    make_harvest(storage)
    return Victim(storage, request.param)


def kill(event: Event) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(event.pid).kill()


def assert_whole(victim: Victim) -> None:
    """Every dictionary is there and learned something, and none that had a checkpoint began again."""
    assert [f.point.seed for f in victim.fitted()] == [0, 1] * len(GRID)
    assert all(f.metrics["fvu"] < 0.6 for f in victim.fitted())
    assert started_over(victim.happened) == []


@pytest.mark.prove
@pytest.mark.parametrize("victim", ["asha"], indirect=True)
def test_a_search_survives_its_driver_a_candidate_and_a_kill_between_its_result_and_the_dictionaries(
    victim: Victim,
) -> None:
    with victim.running() as driver:
        victim.runs_until(driver, lambda: victim.kept() > 3, "checkpoint of a candidate")
    with victim.running() as driver:
        before = victim.kept()
        victim.runs_until(driver, lambda: victim.kept() > before + 3, "checkpoint after the driver's death")
        kill(victim.happened[-1])
        victim.runs_until(
            driver, lambda: len(victim.storage.list("searches")) == len(GRID), "result of both searches"
        )
    found = {name: victim.storage.read_bytes(name) for name in victim.storage.list("searches")}
    assert victim.fitted() == [], "the kill came too late"
    victim.ends()
    assert {name: victim.storage.read_bytes(name) for name in victim.storage.list("searches")} == found
    assert any(event.what == "starts" and event.steps > 0 for event in victim.happened)
    assert_whole(victim)


@pytest.mark.prove
@pytest.mark.parametrize("victim", ["ddp"], indirect=True)
def test_workers_that_share_batches_survive_a_peer_and_their_driver(
    ray_cluster: None, victim: Victim, tmp_path: Path
) -> None:
    with victim.running() as driver:
        victim.runs_until(driver, lambda: victim.kept() > 3, "checkpoint")
        kill(next(e for e in victim.happened if e.what == "joins"))
        victim.runs_until(
            driver, lambda: any(e.steps for e in victim.happened if e.what == "joins"), "return of the peer"
        )
        before = victim.kept()
        victim.runs_until(driver, lambda: victim.kept() > before, "checkpoint after the peer's death")
    victim.ends()
    assert_whole(victim)
    calm = Victim(Storage(str(tmp_path / "calm")), "ddp")
    make_harvest(calm.storage)
    sweep(calm.storage, CASES["ddp"])
    assert [f.digest for f in victim.fitted()] == [f.digest for f in calm.fitted()]


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", list(CASES), indirect=True)
def test_a_sweep_survives_kills_at_random_moments(victim: Victim) -> None:
    moments = random.Random(f"kills {victim.case}")
    for turn in range(6):
        with victim.running() as driver, suppress(subprocess.TimeoutExpired):
            driver.wait(moments.uniform(2, 40))
            break
        if turn % 2 and victim.happened:
            with victim.running() as driver, suppress(subprocess.TimeoutExpired):
                before = len(victim.happened)
                victim.runs_until(
                    driver, lambda b=before: len(victim.happened) > b or driver.poll() is not None, "event"
                )
                kill(victim.happened[-1])
                driver.wait(moments.uniform(2, 40))
                break
    victim.ends()
    assert_whole(victim)
