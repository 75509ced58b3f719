"""Tells an actor that was lost with its node from one that failed on a node that lives: only that is a fault
of its work."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from deltasae_ray import gauges

_NAMESPACE = b"deltasae_ray"


@dataclass(frozen=True)
class Lives:
    """What became of an actor so far, over its restarts."""

    node: str = ""
    """Where it lives, or lived last; empty before its first life."""
    faults: int = 0
    """Times that it was lost and its node was not."""
    lost_nodes: int = 0

    def next(self, node: str, alive: Collection[str]) -> "Lives":
        """The record as a new life begins on `node`, while the nodes `alive` are up."""
        if not self.node:
            return replace(self, node=node)
        if self.node in alive:
            return replace(self, node=node, faults=self.faults + 1)
        return replace(self, node=node, lost_nodes=self.lost_nodes + 1)


def begin_life() -> Lives:
    """Puts a new life of this actor on record, in the cluster's key-value store, and returns all so far."""
    import ray
    from ray.experimental import internal_kv

    context = ray.get_runtime_context()
    key = f"lives:{context.get_actor_id()}".encode()
    stored = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    before = Lives(**json.loads(stored)) if stored else Lives()
    lives = before.next(context.get_node_id(), {n["NodeID"] for n in ray.nodes() if n["Alive"]})
    if before.node:
        gauges.count("restarts", reason="fault" if lives.faults > before.faults else "lost node")
    internal_kv._internal_kv_put(key, json.dumps(asdict(lives)).encode(), True, namespace=_NAMESPACE)
    return lives
