"""Measures how long the stages of a study take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deltasae_ray.logs import labelled
from deltasae_ray.storage import Storage
from deltasae_ray.study.plan import Plan

TIMINGS = "timings.json"


@dataclass
class Clock:
    """Measures the stages of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            with labelled(stage=name):
                yield
        finally:
            self.seconds[name] = time.monotonic() - start

    def longest(self, storage: Storage, of: str) -> dict[str, float]:
        """Stage → the longest it took in any run, kept in the storage: a run that finds a stage done tells
        nothing of its cost.

        Args:
            of: what was run; times of anything else are forgotten.
        """
        kept = storage.read_json(TIMINGS) if storage.exists(TIMINGS) else {}
        before = kept["seconds"] if kept.get("of") == of else {}
        longest = {stage: max(took, before.get(stage, 0.0)) for stage, took in self.seconds.items()}
        storage.write_json(TIMINGS, {"of": of, "seconds": longest})
        return longest

    def beside(self, plan: Plan) -> str:
        """A table of planned and actual minutes."""
        rows = [
            f"  {s:<9}  {_minutes(plan.seconds.get(s)):>8}  {_minutes(took):>8}"
            for s, took in self.seconds.items()
        ]
        return "\n".join([f"  {'minutes':<9}  {'planned':>8}  {'actual':>8}", *rows])


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f}"
