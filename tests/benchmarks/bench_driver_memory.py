"""What a driver holds while gangs run 1,000, 10,000 and 100,000 units whose work is nothing: peak of its
memory, a process each.

    python -m tests.benchmarks.bench_driver_memory [units ...]

Private memory (heap) is what the driver holds itself; pages of Ray's object store that it has touched are
shared, bounded and spilled.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from deltasae_ray.batches import TokenBatch
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from tests.runtime.stub import unit


class Units:
    """Made as they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[TokenBatch, None]]:
        return ((unit(i), None) for i in range(self._count))


def nothing(context: RankContext) -> Any:  # noqa: ARG001 - what gangs call
    """Makes a worker that returns at once."""
    return lambda unit, todo, *, keep: unit.num_tokens  # noqa: ARG005 - what gangs call


def resident() -> tuple[int, int]:
    """Private and shared resident memory of this process, MB."""
    status = Path("/proc/self/status").read_text()
    private, shared = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("RssAnon", "RssShmem"))  # type: ignore[index]
    return private // 1024, shared // 1024


def drive(units: int) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    over, peak, before = threading.Event(), [0, 0], resident()

    def watch() -> None:
        while not over.wait(0.1):
            peak[:] = map(max, peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    done = sum(1 for _ in run_units(Units(units), nothing, GangConfig()))
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    assert done == units
    print(
        f"{units:>8,} units  {before[0]:>4} MB private before, {peak[0]:>4} at the peak; {peak[1]:>4} MB"
        f" shared  {seconds:6.1f} s",
        flush=True,
    )
    ray.shutdown()


if __name__ == "__main__":
    if "ONE_SIZE" in os.environ:
        drive(int(os.environ["ONE_SIZE"]))
    else:
        for size in sys.argv[1:] or ("1000", "10000", "100000"):
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.bench_driver_memory"],
                env=os.environ | {"ONE_SIZE": size},
                check=True,
            )
