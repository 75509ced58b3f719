"""What Ray adds around gangs: units/s of 1, 2 and 4 gangs whose forward pass only sleeps, against as many
sleepers without Ray.

    python -m tests.benchmarks.bench_gangs [units] [seconds per unit]

The clock starts when every gang has run its first unit, so that starting processes is left out.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import ray

from deltasae_ray.batches import TokenBatch
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from tests.runtime.stub import unit


@dataclass(frozen=True)
class Sleeper:
    """A model whose forward pass takes `seconds` and no processor."""

    seconds: float

    def __call__(self, context: RankContext) -> "Sleeper.Worker":  # noqa: ARG002 - what gangs call
        return Sleeper.Worker(self.seconds)

    class Worker:
        def __init__(self, seconds: float) -> None:
            self._seconds, self._process = seconds, ray.get_runtime_context().get_actor_id()

        def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> str | None:  # noqa: ARG002 - what gangs call
            time.sleep(self._seconds)
            return self._process


def main(units: int, seconds: float) -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print(f"{units} units per gang, {seconds} s each")
    for gangs in (1, 2, 4):
        work = [(unit(i), None) for i in range(units * gangs)]
        seen: set[str] = set()
        start, counted = 0.0, 0
        for _, process in run_units(work, Sleeper(seconds), GangConfig(gangs=gangs)):
            if len(seen) == gangs:
                counted += 1
            elif len(seen | {process}) == gangs:
                start = time.perf_counter()
            seen.add(process)
        rate = counted / (time.perf_counter() - start) if counted else 0.0
        print(
            f"  {gangs} gangs: {rate:6.1f} units/s, {rate * seconds / gangs:.2f} of linear (aim >= 0.9),"
            f" {len(seen)} gangs worked"
        )
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60, float(sys.argv[2]) if len(sys.argv) > 2 else 0.25)
