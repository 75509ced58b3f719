"""Workers without a model: what a gang does around its workers is what is tested."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import ray
import torch

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError, PrecisionError
from deltasae_ray.runtime.gang import RankContext


def unit(i: int) -> TokenBatch:
    ids = np.full((1, 4), i, dtype=np.int32)
    return TokenBatch("fit", "domain", ids, np.ones((1, 4), bool), np.zeros((1, 4), bool), (f"d{i}",), (0,))


UNITS = [(unit(i), {"i": i}) for i in range(5)]
EXPECTED = {unit(i).name: i for i in range(5)}


@dataclass(frozen=True)
class Stub:
    """Notes every run of a unit in a file, and dies, fails, refuses to start or waits for its node's end as
    told."""

    notes: Path
    kill: Literal["", "worker", "leader"] = ""
    """Whose process is killed, once, when unit 3 is run."""
    signal: int = signal.SIGKILL
    """What it is killed with; SIGSTOP leaves it where it is."""
    again: bool = False
    """Not once, but every time."""
    wait_for_the_end: bool = False
    """At unit 3, once: names its node in a file and waits."""
    fail_at: int = -1
    bug_at: int = -1
    """Raises what nobody foresaw."""
    refuse: bool = False
    break_at: int = -1
    """Its collective times out there, once."""

    def __call__(self, context: RankContext) -> "StubWorker":
        if self.refuse:
            raise ModelError("this model cannot be loaded: remedy")
        return StubWorker(self, context)


@dataclass(frozen=True)
class Storing(Stub):
    """One whose workers' notes are what is stored."""

    def done(self, unit: TokenBatch, todo: Any) -> dict | None:
        number = int(unit.input_ids[0, 0])
        lines = [line for file in self.notes.glob("rank*") for line in file.read_text().splitlines()]
        return {"number": number, "todo": todo, "stored": True} if f"{number} True" in lines else None


@dataclass(frozen=True)
class Following:
    """Each unit but the first waits until the result of the one before it was heard of: a file of its
    number."""

    heard: Path

    def __call__(self, _context: RankContext) -> Any:
        return self._run

    def _run(self, unit: TokenBatch, todo: Any, *, keep: bool) -> bool:  # noqa: ARG002
        end = time.monotonic() + 20
        while todo["i"] and not (self.heard / str(todo["i"] - 1)).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


class StubWorker:
    def __init__(self, stub: Stub, context: RankContext) -> None:
        self._stub, self._context = stub, context

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> dict:
        number, stub = int(unit.input_ids[0, 0]), self._stub
        if number == stub.fail_at:
            raise PrecisionError(f"unit {number} holds NaN: remedy")
        if number == stub.bug_at:
            raise KeyError("a_name_that_is_not_there")
        if number == stub.break_at and not (stub.notes / "broken").exists():
            (stub.notes / "broken").touch()
            raise torch.distributed.DistBackendError("Watchdog caught collective operation timeout")
        if (
            number == 3
            and keep
            and (stub.kill or stub.wait_for_the_end)
            and (stub.again or not (stub.notes / "struck").exists())
        ):
            (stub.notes / ".struck").write_text(ray.get_runtime_context().get_node_id())
            (stub.notes / ".struck").rename(stub.notes / "struck")
            if stub.kill:
                os.kill(os.getpid() if stub.kill == "worker" else leader(), stub.signal)
            time.sleep(600)  # what follows is another process's
        with (stub.notes / f"rank{self._context.rank}").open("a") as f:
            f.write(f"{number} {keep}\n")
        return {"number": number, "todo": todo, "keep": keep, "world": self._context.world}


def leader() -> int:
    """Process id of the gang's leader, which is a child of the same node as its ranks."""
    node = psutil.Process().parent()
    assert node is not None
    (found,) = [p.pid for p in node.children() if "MapBatches(Gang)" in " ".join(p.cmdline())]
    return found
