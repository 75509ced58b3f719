"""A gang: one Ray Data actor that leads 1..N ranks, which run any function of (model, unit) in lock step."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deltasae_ray import errors
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import DeltaSaeError


@dataclass(frozen=True)
class RankContext:
    """Where a rank stands in its gang."""

    rank: int
    world: int
    device: str


class Worker(Protocol):
    """What a rank runs. `keep` is False for units that only keep the ranks in step: nothing of them may be stored."""

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> Any: ...


WorkerFactory = Callable[[RankContext], Worker]
"""Makes a rank's worker; picklable. Loads the model, so it runs once per rank and not per unit."""


@dataclass(frozen=True)
class Failure:
    """An error that a worker raised on purpose. It travels as a result: as an exception Ray would retry it, and wrap its type away."""

    type: str
    message: str

    @classmethod
    def of(cls, error: DeltaSaeError) -> "Failure":
        return cls(type(error).__name__, str(error))

    def error(self) -> DeltaSaeError:
        """The error, as the worker raised it."""
        return getattr(errors, self.type)(self.message)


class Gang:
    """The leader, a `map_batches` actor. It goes through the units of a block; of every `ranks` units, rank i takes unit i.

    Whole units go to ranks, so a unit's result does not depend on how many ranks there are. A lost rank ends the leader's
    process, which restarts the whole gang: a plain exception would restart nothing.
    """

    def __init__(self, factory: WorkerFactory, blocks: list[Any], ranks: int, threads: int) -> None:
        self._blocks = blocks
        self._ranks: list[Any] = []
        self._failure: Failure | None = None
        try:
            if ranks == 1:
                torch.set_num_threads(threads)
                self._alone = factory(RankContext(0, 1, "cuda" if _gpus() else "cpu"))
            else:
                self._ranks, self._failure = _start_ranks(factory, ranks, threads)
        except DeltaSaeError as e:
            self._failure = Failure.of(e)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (block,) = batch["block"]
        rows: list[dict] = ray.get(self._blocks[block])
        run, step = (self._run_ranks, len(self._ranks)) if self._ranks else (self._run_alone, 1)
        results: list[dict] = []
        for start in range(0, len(rows), step):
            found = self._failure or run(rows[start : start + step])
            if isinstance(found, Failure):
                results.append({"failure": asdict(found)})
                break  # the caller raises it, whatever else there may be
            results += [{"value": value} for value in found]
        names = [row["name"] for row in rows[: len(results)]]
        return {
            "name": np.asarray(names, dtype=object),
            "result": np.asarray([json.dumps(r, allow_nan=False) for r in results], dtype=object),
        }

    def _run_alone(self, rows: list[dict]) -> list[Any] | Failure:
        try:
            return [self._alone(TokenBatch.from_row(row), json.loads(row["todo"]), keep=True) for row in rows]
        except DeltaSaeError as e:
            return Failure.of(e)

    def _run_ranks(self, rows: list[dict]) -> list[Any] | Failure:
        # Every rank gets a unit in every call: collectives wait for all ranks. The padding repeats the first unit.
        padded = rows + [rows[0]] * (len(self._ranks) - len(rows))
        calls = [rank.run.remote(row, keep=i < len(rows)) for i, (rank, row) in enumerate(zip(self._ranks, padded, strict=True))]
        found = _gather(calls)
        if isinstance(found, Failure):
            for rank in self._ranks:
                ray.kill(rank)  # the others may wait for the failed one in a collective
            self._failure = found
            return found
        return found[: len(rows)]


def _gather(calls: list[Any]) -> list[Any] | Failure:
    """Results in the order of `calls`, or the first failure; ends this process when a rank is lost."""
    pending = list(calls)
    try:
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            if isinstance(found := ray.get(done), Failure):
                return found
        return ray.get(calls)
    except (RayActorError, WorkerCrashedError):
        os._exit(1)


def _start_ranks(factory: WorkerFactory, world: int, threads: int) -> tuple[list[Any], Failure | None]:
    gpus = _gpus()
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    port = _free_port()
    ranks = []
    for rank in range(world):
        variables = {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0" if gpus else str(rank), "LOCAL_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "PYTHONHASHSEED": "0",  # PEFT iterates sets of adapter names: ranks must agree on the order of their collectives
            "CUDA_VISIBLE_DEVICES": gpus[rank] if gpus else "",
        }  # fmt: skip
        options = {"num_cpus": 0, "num_gpus": 0, "max_restarts": 0, "scheduling_strategy": node, "runtime_env": {"env_vars": variables}}
        ranks.append(ray.remote(Rank).options(**options).remote(factory, RankContext(rank, world, "cuda" if gpus else "cpu"), threads))
    found = _gather([rank.build.remote() for rank in ranks])
    return ranks, found if isinstance(found, Failure) else None


class Rank:
    """One process of a gang of several; a zero-resource actor on its leader's node (the leader declares the devices)."""

    def __init__(self, factory: WorkerFactory, context: RankContext, threads: int) -> None:
        torch.set_num_threads(threads)
        self._factory, self._context = factory, context

    def build(self) -> Failure | None:
        """Loads the model; not in __init__, whose errors Ray would wrap."""
        try:
            self._worker = self._factory(self._context)
        except DeltaSaeError as e:
            return Failure.of(e)
        return None

    def run(self, row: dict, *, keep: bool) -> Any:
        """The worker's result for a unit, or the Failure it raised on purpose."""
        try:
            return self._worker(TokenBatch.from_row(row), json.loads(row["todo"]), keep=keep)
        except DeltaSaeError as e:
            return Failure.of(e)


def _gpus() -> list[str]:
    """Those that Ray gave this actor. torch may see more: where an actor asks for none, Ray leaves all of the machine's visible."""
    return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
