"""Ray tasks that each hold some cores: what a stage runs that needs no gang."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from deltasae_ray import gauges, stalls
from deltasae_ray.errors import DeltaSaeError, ResourceError, WorkerError
from deltasae_ray.heartbeat import Limits
from deltasae_ray.progress import Bar
from deltasae_ray.runtime.allocation import keep_freed_memory
from deltasae_ray.runtime.autoscaler import possible_types
from deltasae_ray.runtime.node_types import NodeType

log = logging.getLogger(__name__)
_QUIET_S = 1800.0
"""Seconds without a task that ended after which the user is told; as often again."""
_NOTHING_S = 24 * 3600.0
"""Seconds without a task that ended after which the wait is over: spot machines may take hours to come."""


def run_tasks(
    work: Sequence[tuple[Callable[[Any], Any], Any]], cpus: float, *, bar: str, memory: int = 0
) -> list[Any]:
    """What each function makes of its argument, as Ray tasks, in the order of `work`.

    Args:
        cpus: that a task asks Ray for; it uses as many threads.
        bar: name of the progress bar.
        memory: bytes that a task asks Ray for; more than the largest node has that could run it is cut to
            that, since such a task would wait for ever.

    Raises:
        ResourceError: no node that is there, or may come, has so many CPUs; or none ran a task for a day.
        DeltaSaeError: what a task raised on purpose.
        WorkerError: the process of a task was lost again and again.
    """
    if not work:
        return []
    import ray
    from ray.exceptions import RayError, RayTaskError

    options = {"num_cpus": cpus, "memory": memory_asked(possible_types(), cpus, memory), "max_retries": 3}
    task, limits = ray.remote(**options)(_with_threads), Limits()
    asked = left = [task.remote(function, argument, max(1, int(cpus)), limits) for function, argument in work]
    quiet = 0.0
    with Bar(len(left), bar, "tasks") as progress, stalls.warning_of_stalls():
        while left:
            done, left = ray.wait(left, timeout=_QUIET_S)
            quiet = 0.0 if done else quiet + _QUIET_S
            if quiet:
                _tell_of_quiet(quiet, len(left), cpus)
            try:
                ray.get(done)
            except RayError as e:
                for other in left:
                    ray.cancel(other)
                if not isinstance(
                    e, RayTaskError
                ):  # killed for its memory or because it stood still, or its node went
                    raise WorkerError(
                        f"the process of a task was lost again and again: {e}. What is stored stays, and the"
                        " same command continues; if its memory was the cause, take larger nodes"
                    ) from e
                if isinstance(e.cause, DeltaSaeError):
                    raise e.cause from None
                raise
            progress.update(len(done))
            gauges.show("queue", len(left))
    return ray.get(asked)


def _tell_of_quiet(seconds: float, left: int, cpus: float) -> None:
    """Raises ResourceError after a day."""
    if seconds >= _NOTHING_S:
        raise ResourceError(
            f"none of {left} tasks of {cpus:g} CPUs has ended for {seconds / 3600:g} hours: see `ray status`"
            " for nodes that do not come, then run the same command again; what is stored stays"
        )
    minutes, look = seconds / 60, "`ray status` tells whether they run, or wait for nodes"
    log.warning("none of %d tasks of %g CPUs has ended for %.0f minutes: %s", left, cpus, minutes, look)


def memory_asked(nodes: Sequence[NodeType] | None, cpus: float, memory: int) -> int:
    """What a task of so many CPUs that may take `memory` bytes is to ask for: no more than the largest node
    has that could run it.

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
            f"a task of {cpus:g} CPUs fits no node of this cluster, of those that are there or may come; the"
            f" largest has {most:g}: add a node with more CPUs; Ray would wait for ever"
        )
    largest = max(able)
    if memory > largest > 0:
        log.warning(
            "a task may take %.1f GiB, and the largest node has %.1f: it may run out of memory",
            memory / 2**30,
            largest / 2**30,
        )
    return min(memory, largest) if largest else 0


def _with_threads(function: Callable[[Any], Any], argument: Any, threads: int, limits: Limits) -> Any:
    import torch

    torch.set_num_threads(threads)  # Ray gives a task one thread whatever it asked for
    keep_freed_memory()
    return stalls.watched(function, limits, argument)
