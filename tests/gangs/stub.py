"""Workers without a model: what a gang does around its workers is what is tested."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError, PrecisionError
from deltasae_ray.gangs.gang import RankContext


def unit(i: int) -> TokenBatch:
    ids = np.full((1, 4), i, dtype=np.int32)
    return TokenBatch("fit", "domain", ids, np.ones((1, 4), bool), np.zeros((1, 4), bool), (f"d{i}",), (0,))


@dataclass(frozen=True)
class Stub:
    """Notes every run of a unit in a file, and dies, fails or refuses to start as told."""

    notes: Path
    die_once_at: int = -1
    fail_at: int = -1
    refuse: bool = False

    def __call__(self, context: RankContext) -> "StubWorker":
        if self.refuse:
            raise ModelError("this model cannot be loaded: remedy")
        return StubWorker(self, context)


class StubWorker:
    def __init__(self, stub: Stub, context: RankContext) -> None:
        self._stub, self._context = stub, context

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> dict:
        number = int(unit.input_ids[0, 0])
        if number == self._stub.fail_at:
            raise PrecisionError(f"unit {number} holds NaN: remedy")
        killed = self._stub.notes / "killed"
        if number == self._stub.die_once_at and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self._stub.notes / f"rank{self._context.rank}").open("a") as f:
            f.write(f"{number} {keep}\n")
        return {"number": number, "todo": todo, "keep": keep, "world": self._context.world}
