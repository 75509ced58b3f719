"""Ray Data streams units through a pool of gangs; what comes back is one small result per unit."""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Any, Protocol

import ray
from ray.util.annotations import RayDeprecationWarning

from deltasae_ray import gauges, stalls
from deltasae_ray.batches import TokenBatch
from deltasae_ray.heartbeat import Limits
from deltasae_ray.runtime import failure
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.failure import Failure
from deltasae_ray.runtime.gang import Gang, WorkerFactory

BLOCKS = 1024
"""Most blocks of a run (or 32 per gang): what Ray keeps of a block in this process, some kilobytes, must not
grow with the units."""


class Work(Protocol):
    """Units with what is to be done with each; one pass over them makes them, so that none need be held."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[TokenBatch, Any]]: ...


def run_units(
    work: Work,
    factory: WorkerFactory,
    cfg: GangConfig,
    *,
    part: Callable[[Any], int] | None = None,
    parts: int = 1,
) -> Iterator[tuple[str, Any]]:
    """Runs every (unit, todo) once, as gangs come free; yields (unit name, result) in the order of
    completion.

    A block whose gang was lost, or stood still for ten times the median of its units and at least a minute,
    goes to another; of a factory that is `Stored`, units that were stored before the loss are not run again.

    Args:
        part: which part of the work a todo belongs to. Units then reach gangs in the order of `work`, and no
            block holds units of two parts: a unit may wait for what is made of the parts before it.
        parts: how many there are.

    Units wait in Ray's object store, which spills to disk; this process holds one block of them at a time.
    Results must be small and JSON-able: activations are written by the ranks and never enter the object
    store.

    Raises:
        DeltaSaeError: what a worker raised on purpose.
        WorkerError: anything else that it raised, with its type and traceback. Only a lost process restarts
            its gang.
    """
    if not len(work):
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = 24 * 3600  # spot machines may take hours to come
    context.max_errored_blocks = 0
    context.execution_options.preserve_order = part is not None
    gangs = min(cfg.gangs, -(-len(work) // cfg.ranks))
    blocks = [
        ray.put(block) for block in in_blocks(work, block_size(len(work), cfg, parts), part or (lambda _: 0))
    ]
    dataset = _streamed(blocks, factory, cfg, gangs, in_order=part is not None)
    gauges.show("units", len(work))
    left = len(work)
    gauges.show("queue", left)
    # No prefetching: it would keep the last finished block back until the next one is there, which may wait
    # for what is made of this one.
    with stalls.warning_of_stalls():
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for name, packed in zip(batch["name"], batch["result"], strict=True):
                result = json.loads(packed)
                if "failure" in result:
                    raise Failure(**result["failure"]).error()
                left -= 1
                gauges.show("units_done", len(work) - left)
                gauges.show("queue", left)
                gauges.show("last_unit", time.time())
                yield name, result["value"]


def _streamed(
    blocks: list[ray.ObjectRef], factory: WorkerFactory, cfg: GangConfig, gangs: int, *, in_order: bool
) -> ray.data.Dataset:
    """The results of all blocks, by a pool of `gangs` gangs that Ray Data keeps."""
    # Small blocks would coalesce into one, and one actor would do everything: a block is the grain of
    # parallelism and of retries.
    dataset = ray.data.from_items([{"block": i} for i in range(len(blocks))], override_num_blocks=len(blocks))
    with warnings.catch_warnings():
        # Deprecated until Ray 2.64, and in 2.60 without anything in its place: restarts are endless and tasks
        # out of order by default.
        warnings.filterwarnings("ignore", "`ray_remote_args`", RayDeprecationWarning)
        return dataset.map_batches(
            Gang,
            fn_constructor_kwargs={
                "factory": factory,
                "blocks": blocks,
                "ranks": cfg.ranks,
                "gangs": gangs,
                "cpus": cfg.cpus_per_gang,
                "gpus": cfg.gpus_per_gang,
                "limits": Limits(),
                "most_faults": failure.MAX_FAULTS,
            },
            batch_size=1,
            num_cpus=cfg.cpus_per_gang,
            num_gpus=cfg.gpus_per_gang or None,
            memory=round(cfg.memory_gb * 1e9) or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gangs),
            # Without end, as Ray Data tries tasks, and must: a lost node refuses connections for seconds
            # before Ray knows that it is gone, and every refusal counts as a try. What ends a unit that kills
            # its gang each time is the gang's own count, in which lost nodes do not stand.
            max_restarts=-1,
            # Ray Data's default is True: a gang would begin a unit before the one it waits for.
            allow_out_of_order_execution=not in_order,
        )


def block_size(units: int, cfg: GangConfig, parts: int = 1) -> int:
    """Units per block: one per rank, until there are too many blocks; of several parts, none so large that a
    gang has no block of one."""
    most = max(BLOCKS, 32 * cfg.gangs)
    each = units if parts == 1 else min(units, most * -(-units // (parts * cfg.gangs)))
    return cfg.ranks * -(-each // (cfg.ranks * most))


def in_blocks(work: Work, size: int, part: Callable[[Any], int]) -> Iterator[list[dict]]:
    """The rows of at most `size` units of one part at a time, in the order of `work`."""
    for _, members in groupby(work, key=lambda entry: part(entry[1])):
        rows = ({**unit.to_row(), "todo": json.dumps(todo)} for unit, todo in members)
        yield from iter(lambda rows=rows: list(islice(rows, size)), [])
