"""Counts what the nodes of a run cost while it runs."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deltasae_ray import gauges
from deltasae_ray.runtime.node_types import NodeType, of_ray
from deltasae_ray.study.prices import dollars_per_hour

log = logging.getLogger(__name__)
_LOOK_S = 30.0


@contextmanager
def spending() -> Iterator[None]:
    """Inside, the metric `dollars` grows with the list price of the nodes that are up."""
    over, spent = threading.Event(), 0.0
    last = time.monotonic()

    def look() -> None:
        nonlocal spent, last
        while not over.wait(_LOOK_S):
            nodes, now = _up(), time.monotonic()
            spent += dollars_per_hour(nodes) * (now - last) / 3600
            last = now
            gauges.show("dollars", spent)

    thread = threading.Thread(target=look, daemon=True, name="spending")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


def _up() -> list[NodeType]:
    import ray

    try:
        return [of_ray("node", node["Resources"]) for node in ray.nodes() if node["Alive"]]
    except Exception as e:  # a cluster that does not answer now: a look at it must not end the study
        log.warning("the nodes could not be listed, so a moment's cost is not counted: %s", e)
        return []
