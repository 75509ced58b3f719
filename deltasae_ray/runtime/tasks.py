"""Ray tasks that each hold some cores: what a stage runs that needs no gang."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from deltasae_ray import stalls
from deltasae_ray.errors import DeltaSaeError, ResourceError
from deltasae_ray.heartbeat import Limits
from deltasae_ray.runtime.allocation import keep_freed_memory
from deltasae_ray.runtime.node_types import NodeType, possible_types

log = logging.getLogger(__name__)


def run_tasks(
    work: Sequence[tuple[Callable[[Any], Any], Any]], cpus: float, *, bar: str | None = None, memory: int = 0
) -> list[Any]:
    """What each function makes of its argument, as Ray tasks, in the order of `work`.

    Args:
        cpus: that a task asks Ray for; it uses as many threads.
        bar: name of the progress bar; None shows none.
        memory: bytes that a task asks Ray for; more than the largest node has that could run it is cut to that, since such a task would
            wait for ever.

    Raises:
        ResourceError: no node that is there, or may come, has so many CPUs.
        DeltaSaeError: what a task raised on purpose.
    """
    if not work:
        return []
    import ray
    from ray.exceptions import RayTaskError

    options = {"num_cpus": cpus, "memory": memory_asked(possible_types(), cpus, memory), "max_retries": 3}
    task, limits = ray.remote(**options)(_with_threads), Limits()
    asked = left = [task.remote(function, argument, max(1, int(cpus)), limits) for function, argument in work]
    with tqdm(total=len(left), desc=bar, unit="task", disable=bar is None) as progress, stalls.told():
        while left:
            done, left = ray.wait(left)
            try:
                ray.get(done)
            except RayTaskError as e:
                for other in left:
                    ray.cancel(other)
                if isinstance(e.cause, DeltaSaeError):
                    raise e.cause from None
                raise
            progress.update(len(done))
    return ray.get(asked)


def memory_asked(nodes: Sequence[NodeType] | None, cpus: float, memory: int) -> int:
    """What a task of so many CPUs that may take `memory` bytes is to ask for: no more than the largest node has that could run it.

    Args:
        nodes: that are there or may come; None where nobody says.

    Raises:
        ResourceError: none has so many CPUs.
    """
    if nodes is None:
        return memory
    able = [int(node.memory) for node in nodes if node.cpus >= cpus]
    if not able:
        most = max((node.cpus for node in nodes), default=0.0)
        raise ResourceError(
            f"a task of {cpus:g} CPUs fits no node of this cluster, of those that are there or may come; the largest has {most:g}: add a "
            "node with more CPUs; Ray would wait for ever"
        )
    largest = max(able)
    if memory > largest > 0:
        log.warning("a task may take %.1f GiB, and the largest node has %.1f: it may run out of memory", memory / 2**30, largest / 2**30)
    return min(memory, largest) if largest else 0


def _with_threads(function: Callable[[Any], Any], argument: Any, threads: int, limits: Limits) -> Any:
    import torch

    torch.set_num_threads(threads)  # Ray gives a task one thread whatever it asked for
    keep_freed_memory()
    return stalls.watched(function, limits, argument)
