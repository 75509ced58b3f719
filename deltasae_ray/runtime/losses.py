"""Tells an actor that was lost with its node from one that failed on a node that lives: only that is a fault
of its work. Of lost nodes, those that were drained before (a cloud took them back) are told apart."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from deltasae_ray import gauges

_NAMESPACE = b"deltasae_ray"
_DRAINED = (3, 4)
"""Ray's NodeDeathInfo: drained since the cloud takes it back, or since it was idle."""


@dataclass(frozen=True)
class Lives:
    """What became of an actor so far, over its restarts."""

    node: str = ""
    """Where it lives, or lived last; empty before its first life."""
    faults: int = 0
    """Times that it was lost and its node was not."""
    lost_nodes: int = 0
    drained: int = 0
    """Of the lost nodes, those that were drained first."""

    def next(self, node: str, alive: Collection[str], drained: Collection[str] = ()) -> "Lives":
        """The record as a new life begins on `node`, while the nodes `alive` are up and those `drained` are
        gone, or go."""
        if not self.node:
            return replace(self, node=node)
        if self.node in drained:
            return replace(self, node=node, lost_nodes=self.lost_nodes + 1, drained=self.drained + 1)
        if self.node in alive:
            return replace(self, node=node, faults=self.faults + 1)
        return replace(self, node=node, lost_nodes=self.lost_nodes + 1)

    def reason(self, before: "Lives") -> str:
        """Why the life after `before` began: `fault`, `drained` or `lost node`."""
        if self.faults > before.faults:
            return "fault"
        return "drained" if self.drained > before.drained else "lost node"


def restarts() -> str:
    """How often gangs of this job started again, by reason, as the end of a study tells it; empty: never."""
    import ray
    from ray.experimental import internal_kv

    if not ray.is_initialized():
        return ""
    job = ray.get_runtime_context().get_job_id()
    keys = internal_kv._internal_kv_list(b"lives:", namespace=_NAMESPACE)
    values = [internal_kv._internal_kv_get(k, namespace=_NAMESPACE) for k in keys if k.decode().endswith(job)]
    return count_restarts([Lives(**json.loads(v)) for v in values if v])


def count_restarts(lives: Collection[Lives]) -> str:
    """Such as `Gangs started again: 1 after a fault, 2 with a drained node`; empty: none did."""
    drained = sum(x.drained for x in lives)
    numbers = {
        "after a fault on a living node": sum(x.faults for x in lives),
        "with a drained node": drained,
        "with a node that was lost without notice": sum(x.lost_nodes for x in lives) - drained,
    }
    parts = ", ".join(f"{n} {name}" for name, n in numbers.items() if n)
    return f"Gangs started again: {parts}" if parts else ""


def begin_life() -> Lives:
    """Puts a new life of this actor on record, in the cluster's key-value store, and returns all so far."""
    import ray
    from ray._private import state
    from ray.experimental import internal_kv

    context = ray.get_runtime_context()
    key = f"lives:{context.get_actor_id()}".encode()
    stored = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    before = Lives(**json.loads(stored)) if stored else Lives()
    nodes = ray.nodes()
    drained = {n["NodeID"] for n in nodes if not n["Alive"] and n.get("DeathReason") in _DRAINED}
    drained |= set(state.state.get_draining_nodes())
    lives = before.next(context.get_node_id(), {n["NodeID"] for n in nodes if n["Alive"]}, drained)
    if before.node:
        gauges.count("restarts", reason=lives.reason(before))
    internal_kv._internal_kv_put(key, json.dumps(asdict(lives)).encode(), True, namespace=_NAMESPACE)
    return lives
