"""Kills of what takes part in a harvest, while it works."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from tests.harvest.driver import LOST

WAIT_S = 800
LEADER, RANK = "MapBatches(Gang)", "ray::Rank"


Victim = Literal["driver", "leader", "rank", "node"]
"""node: the one that holds the gang."""


@dataclass(frozen=True)
class Strike:
    victim: Victim
    records: int
    """Units that count before it, at least."""
    wait: float = 0.0
    """Seconds that pass then."""


@dataclass(frozen=True)
class Struck:
    """What a strike found and what came of it."""

    counted: dict[Path, int]
    """Shards that counted, with their times of change in ns."""
    followed: bool
    """A new gang began before the harvest ended, after a lost node on another one."""


def prepared(calm: Path, root: Path) -> None:
    """Makes `root` a harvest that has measured its noise floors and made its random adapter as the calm one
    did, and has no shard yet."""
    shutil.copytree(calm, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.parquet"))


def strike(
    root: Path, key: str, model: Path, adapters: Sequence[Path], strikes: Sequence[Strike], *, ranks: int
) -> list[Struck]:
    """Harvests in a process of its own that is struck in turn, and waits for its end; a dead driver stays
    dead.

    Raises:
        AssertionError: it failed, or ended before a strike; with the end of what it said.
    """
    nodes = 2 if any(s.victim == "node" for s in strikes) else 1
    words = [
        sys.executable,
        "-m",
        "tests.harvest.driver",
        str(root),
        str(ranks),
        str(nodes),
        str(model),
        *map(str, adapters),
    ]
    log = root / "driver.log"
    with log.open("wb") as output:
        driver = psutil.Popen(words, stdout=output, stderr=output)
    found = []
    try:
        for one in strikes:
            counted = _counted_at(driver, root, key, one, log)
            found.append(Struck(counted, _strike(driver, root, one.victim)))
        if strikes[-1].victim != "driver":
            assert driver.wait(timeout=WAIT_S) == 0, log.read_text()[-3000:]
    finally:
        _end(driver)
    return found


def _counted_at(driver: psutil.Popen, root: Path, key: str, one: Strike, log: Path) -> dict[Path, int]:
    rows, deadline = root / key / "rows", time.monotonic() + WAIT_S
    while (
        time.monotonic() < deadline
        and (len(os.listdir(rows)) if rows.exists() else 0) < one.records
        and driver.poll() is None
    ):
        time.sleep(0.01)
    assert driver.poll() is None and time.monotonic() < deadline, (
        f"{one} found no harvest at work: {log.read_text()[-3000:]}"
    )
    time.sleep(one.wait)
    files = {root / key / row.file for row in Manifest.load(Storage(str(root)), key).rows}
    return {file: file.stat().st_mtime_ns for file in files}


def _strike(driver: psutil.Popen, root: Path, victim: Victim) -> bool:
    if victim == "driver":
        _end(driver)
        return False
    leader = _youngest(driver, LEADER)
    assert leader is not None, "no gang is at work"
    node = leader.ppid()
    if victim == "node":
        (root / f".{LOST}").write_text(str(node))
        (root / f".{LOST}").rename(root / LOST)
    else:
        struck = leader if victim == "leader" else _youngest(driver, RANK)
        assert struck is not None, "no rank is at work"
        struck.kill()
    while driver.poll() is None:
        time.sleep(0.2)
        now = _youngest(driver, LEADER)
        if now is not None and now.pid != leader.pid and (victim != "node" or now.ppid() != node):
            return True
    return False


def _end(driver: psutil.Popen) -> None:
    """With the Ray that it started; ours lives on."""
    if driver.poll() is not None:
        return
    children = driver.children(recursive=True)
    driver.kill()
    driver.wait()
    for child in children:
        if child.is_running():
            child.kill()


def _youngest(driver: psutil.Popen, title: str) -> psutil.Process | None:
    """The youngest process of that title, if there is one; its parent is the raylet of its node."""
    found = []
    for child in driver.children(recursive=True):
        with suppress(psutil.Error):  # it may end just now
            if title in " ".join(child.cmdline()):
                found.append((child.create_time(), child.pid, child))
    return max(found)[2] if found else None
