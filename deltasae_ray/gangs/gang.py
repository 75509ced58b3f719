"""A gang: one Ray Data actor that leads 1..N ranks, which run any function of (model, unit) in lock step."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deltasae_ray.batches import TokenBatch


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


class Gang:
    """The leader, a `map_batches` actor. A batch is at most one unit per rank; rank i takes unit i.

    Whole units go to ranks, so a unit's result does not depend on how many ranks there are. A lost rank ends the leader's
    process, which restarts the whole gang: a plain exception would restart nothing.
    """

    def __init__(self, factory: WorkerFactory, ranks: int, threads: int) -> None:
        self._ranks: list[Any] = []
        self._alone: Worker | None = None
        if ranks == 1:
            torch.set_num_threads(threads)
            self._alone = factory(RankContext(0, 1, "cuda" if torch.cuda.is_available() else "cpu"))
        else:
            self._ranks = _start_ranks(factory, ranks, threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [{name: column[i] for name, column in batch.items()} for i in range(len(batch["name"]))]
        results = [self._run_alone(row) for row in rows] if self._alone else self._run_ranks(rows)
        return {"name": batch["name"], "result": np.asarray([_json(r) for r in results], dtype=object)}

    def _run_alone(self, row: dict) -> Any:
        assert self._alone is not None
        return self._alone(TokenBatch.from_row(row), _todo(row), keep=True)

    def _run_ranks(self, rows: list[dict]) -> list[Any]:
        assert len(rows) <= len(self._ranks), "batch_size must be the number of ranks"
        # Every rank gets a unit in every call: collectives wait for all ranks. The padding repeats the first unit.
        padded = rows + [rows[0]] * (len(self._ranks) - len(rows))
        calls = [rank.run.remote(row, keep=i < len(rows)) for i, (rank, row) in enumerate(zip(self._ranks, padded, strict=True))]
        try:
            return ray.get(calls)[: len(rows)]
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError):
            os._exit(1)


def _start_ranks(factory: WorkerFactory, world: int, threads: int) -> list[Any]:
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    node = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
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
    try:
        ray.get([rank.ready.remote() for rank in ranks])
    except ray.exceptions.RayActorError as e:
        # A worker that cannot be built would restart for ever: hand its own error on instead.
        raise e.cause if isinstance(getattr(e, "cause", None), Exception) else e from None
    return ranks


class Rank:
    """One process of a gang of several; a zero-resource actor on its leader's node (the leader declares the devices)."""

    def __init__(self, factory: WorkerFactory, context: RankContext, threads: int) -> None:
        torch.set_num_threads(threads)
        self._worker = factory(context)

    def ready(self) -> None:
        """Returns once the worker is built."""

    def run(self, row: dict, *, keep: bool) -> Any:
        return self._worker(TokenBatch.from_row(row), _todo(row), keep=keep)


def _todo(row: dict) -> Any:
    import json

    return json.loads(row["todo"])


def _json(value: Any) -> str:
    import json

    return json.dumps(value, allow_nan=False)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
