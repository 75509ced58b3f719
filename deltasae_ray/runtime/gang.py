"""A gang: one Ray Data actor that leads 1..N ranks, which run any function of (model, unit) in lock step."""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deltasae_ray import gauges, heartbeat, stalls
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.heartbeat import Limits
from deltasae_ray.logs import label, labelled
from deltasae_ray.runtime.allocation import keep_freed_memory
from deltasae_ray.runtime.failure import MAX_FAULTS, Failure, too_many_faults
from deltasae_ray.runtime.nodes import cores_per_rank
from deltasae_ray.runtime.rendezvous import AGENT_STORE, INTERFACES, loopback_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankContext:
    """Where a rank stands in its gang."""

    rank: int
    world: int
    device: str


class Worker(Protocol):
    """What a rank runs. `keep` is False for units that only keep the ranks in step: nothing of them may be
    stored."""

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> Any: ...


WorkerFactory = Callable[[RankContext], Worker]
"""Makes a rank's worker; picklable. Loads the model, so it runs once per rank and not per unit."""


@runtime_checkable
class Stored(Protocol):
    """A factory whose workers store what they make, so that a unit that is run again need not be done
    again."""

    def __call__(self, context: RankContext) -> Worker: ...

    def done(self, unit: TokenBatch, todo: Any) -> Any | None:
        """What the worker would return, if all of it is stored already; None if something is missing."""
        ...


class Gang:
    """The leader, a `map_batches` actor. It goes through the units of a block; of every `ranks` units, rank i
    takes unit i.

    Whole units go to ranks, so a unit's result does not depend on how many ranks there are. A lost rank ends
    the leader's process, which restarts the whole gang: a plain exception would restart nothing. So does a
    rank or leader that stands still: it is watched, and killed.
    """

    def __init__(  # noqa: PLR0913 - Ray Data passes them one by one
        self,
        factory: WorkerFactory,
        blocks: list[Any],
        ranks: int,
        gangs: int,
        cpus: float,
        gpus: int,
        limits: Limits | None = None,
        most_faults: int = MAX_FAULTS,
    ) -> None:
        """
        Args:
            limits: after which a process of the gang is taken for stalled; None watches none.
            most_faults: after which the gang starts no more; losses of its node are none.
        """
        context = ray.get_runtime_context()
        actor = context.get_actor_id()
        name = f"gang {actor}"[:17]
        if limits:
            stalls.watch(f"the leader of {name}" if ranks > 1 else name, limits)
        label(gang=name.removeprefix("gang "))
        self._blocks = blocks
        self._again = actor is not None and context.was_current_actor_reconstructed
        self._done = factory.done if isinstance(factory, Stored) else None
        self._ranks: list[Any] = []
        self._failure: Failure | None = too_many_faults(name, most_faults)
        if self._failure:
            return
        threads = cores_per_rank(ranks, gangs, cpus, gpus)
        if ranks > 1:
            self._store = (
                loopback_store()
            )  # lives as long as this process: its port is never free for another gang
            self._ranks, self._failure = _start_ranks(factory, name, ranks, threads, self._store.port, limits)
            return
        torch.set_num_threads(threads)
        keep_freed_memory()
        try:
            with heartbeat.unit("loading", heartbeat.LOADING_S):
                self._alone = factory(RankContext(0, 1, "cuda" if _gpus() else "cpu"))
        except Exception as e:  # noqa: BLE001 - a bug ends the run with its traceback, as an error on purpose does
            self._failure = Failure.of(e)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (block,) = batch["block"]
        with heartbeat.unit("wait for a block"):
            rows: list[dict] = ray.get(self._blocks[block])
        results, left = self._already(rows)
        if self._again:  # the block that the life before was lost with
            gauges.count("retries", len(left))
            self._again = False
        run, step = (self._run_ranks, len(self._ranks)) if self._ranks else (self._run_alone, 1)
        for start in range(0, len(left), step):
            chunk = left[start : start + step]
            outcome = self._failure or run(chunk)
            if isinstance(outcome, Failure):
                results = {chunk[0]["name"]: {"failure": asdict(outcome)}}
                break  # the caller raises it, whatever else there may be
            gauges.count("tokens", sum(TokenBatch.from_row(row).num_tokens for row in chunk))
            results |= {row["name"]: {"value": value} for row, value in zip(chunk, outcome, strict=True)}
        return {
            "name": np.asarray(list(results), dtype=object),
            "result": np.asarray([json.dumps(r, allow_nan=False) for r in results.values()], dtype=object),
        }

    def _already(self, rows: list[dict]) -> tuple[dict[str, dict], list[dict]]:
        """Results of the units that a gang before this one has stored, by name, and the rows of the others.

        The leader looks, and not each rank: the ranks must agree on what they run.
        """
        results: dict[str, dict] = {}
        if self._done is None or self._failure:
            return results, rows
        for row in rows:
            try:
                with heartbeat.unit("look for what is stored"):
                    value = self._done(TokenBatch.from_row(row), json.loads(row["todo"]))
            except DeltaSaeError as e:
                return {row["name"]: {"failure": asdict(Failure.of(e))}}, []
            if value is not None:
                results[row["name"]] = {"value": value}
        return results, [row for row in rows if row["name"] not in results]

    def _run_alone(self, rows: list[dict]) -> list[Any] | Failure:
        try:
            results = []
            for row in rows:
                with labelled(unit=row["name"]), heartbeat.unit("unit"):
                    results.append(self._alone(TokenBatch.from_row(row), json.loads(row["todo"]), keep=True))
                    log.info("the unit is done")
            return results
        except Exception as e:  # noqa: BLE001 - see __init__
            return Failure.of(e)

    def _run_ranks(self, rows: list[dict]) -> list[Any] | Failure:
        # Every rank gets a unit in every call: collectives wait for all ranks. The padding repeats the first
        # unit.
        padded = rows + [rows[0]] * (len(self._ranks) - len(rows))
        calls = [
            rank.run.remote(row, keep=i < len(rows))
            for i, (rank, row) in enumerate(zip(self._ranks, padded, strict=True))
        ]
        answers = _gather(calls)
        if isinstance(answers, Failure):
            for rank in self._ranks:
                ray.kill(rank)  # the others may wait for the failed one in a collective
            self._failure = answers
            return answers
        return answers[: len(rows)]


def _gather(calls: list[Any]) -> list[Any] | Failure:
    """Results in the order of `calls`, or the first failure; ends this process when a rank is lost.

    A rank that stands still is killed by the process that watches it, and so is lost: this one may wait as
    long as it takes.
    """
    pending = list(calls)
    try:
        while pending:
            done, pending = _answered(pending, 1)
            if isinstance(answer := ray.get(done[0]), Failure):
                if answer.lost:
                    log.warning("a collective broke, so the gang starts again: %s", answer.message)
                    os._exit(1)
                if answer.traceback:
                    _end_if_lost(pending)
                return answer
        return ray.get(calls)
    except (RayActorError, WorkerCrashedError):
        os._exit(1)


def _answered(pending: list[Any], count: int, within: float = float("inf")) -> tuple[list[Any], list[Any]]:
    """Splits `pending` into those that have answered, once they are `count` or the time is up, and the
    others; a wait with a beat each second."""
    end, done, left = time.monotonic() + within, [], pending
    with heartbeat.unit("wait for its ranks"):
        while len(done) < count and time.monotonic() < end:
            heartbeat.beat()
            done, left = ray.wait(
                pending, num_returns=count, timeout=min(1.0, max(0.0, end - time.monotonic()))
            )
    return done, left


_LOST_S = 20.0
"""Within which Ray tells of a rank that is gone."""


def _end_if_lost(pending: list[Any]) -> None:
    """Raises RayActorError where a rank is lost: a collective that breaks off is an error of those that are
    left, and it often comes first.

    A rank that waits for the failed one in a collective answers nothing; then nobody is lost.
    """
    answered, _ = _answered(pending, len(pending), _LOST_S)
    ray.get(answered)


def _start_ranks(
    factory: WorkerFactory, gang: str, world: int, threads: int, port: int, limits: Limits | None
) -> tuple[list[Any], Failure | None]:
    gpus = _gpus()
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ranks = []
    for rank in range(world):
        variables = {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0" if gpus else str(rank),
            "LOCAL_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            **AGENT_STORE, **INTERFACES,
            # PEFT iterates sets of adapter names: ranks must agree on the order of their collectives
            "PYTHONHASHSEED": "0",
            "CUDA_VISIBLE_DEVICES": gpus[rank] if gpus else "",
        }  # fmt: skip
        options = {
            "num_cpus": 0,
            "num_gpus": 0,
            "max_restarts": 0,
            "scheduling_strategy": node,
            "runtime_env": {"env_vars": variables},
        }
        context = RankContext(rank, world, "cuda" if gpus else "cpu")
        ranks.append(ray.remote(Rank).options(**options).remote(factory, context, threads, gang, limits))
    answers = _gather([rank.build.remote() for rank in ranks])
    return ranks, answers if isinstance(answers, Failure) else None


class Rank:
    """One process of a gang of several; a zero-resource actor on its leader's node (the leader declares the
    devices)."""

    def __init__(
        self, factory: WorkerFactory, context: RankContext, threads: int, gang: str, limits: Limits | None
    ) -> None:
        if limits:
            stalls.watch(f"rank {context.rank} of {context.world} of {gang}", limits)
        label(gang=gang.removeprefix("gang "))
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._factory, self._context = factory, context

    def build(self) -> Failure | None:
        """Loads the model; not in __init__, whose errors Ray would wrap."""
        try:
            with heartbeat.unit("loading", heartbeat.LOADING_S):
                self._worker = self._factory(self._context)
        except Exception as e:  # noqa: BLE001 - it travels to the caller with its traceback
            return Failure.of(e)
        return None

    def run(self, row: dict, *, keep: bool) -> Any:
        """The worker's result for a unit, or the Failure that it raised."""
        try:
            with labelled(unit=row["name"]), heartbeat.unit("unit"):
                result = self._worker(TokenBatch.from_row(row), json.loads(row["todo"]), keep=keep)
                log.info("the unit is done")
                return result
        except Exception as e:  # noqa: BLE001 - it travels to the caller with its traceback
            return Failure.of(e)


def _gpus() -> list[str]:
    """GPUs that Ray gave this actor. torch may see more: where an actor asks for none, Ray leaves all of the
    machine's visible."""
    return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
