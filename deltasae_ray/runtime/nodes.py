"""What kind of cluster this is."""

import os
from pathlib import Path

from deltasae_ray.sae.threads import cores


def autoscaling() -> bool:
    """Whether nodes come on demand: on a KubeRay cluster, or on the head of one that `ray up` launched.

    The head's own status does not tell: a plain `ray start` reports one too, of an autoscaler that can add
    nothing.
    """
    return "RAY_CLUSTER_NAME" in os.environ or Path("~/ray_bootstrap_config.yaml").expanduser().exists()


def one_machine() -> bool:
    """Whether Ray is this machine alone, and stays so: whatever ends it ends the driver too."""
    import ray

    return not autoscaling() and sum(node["Alive"] for node in ray.nodes()) == 1


def cores_per_rank(ranks: int, gangs: int, cpus: float, gpus: int) -> int:
    """Threads of a rank, asked in its leader: the cores of this very node, shared by the ranks that may stand
    on it.

    Args:
        gangs: most gangs of the pool. Those expected here are their share of the nodes that hold one, and no
            more than this node holds.
        cpus, gpus: what a gang asks Ray for.
    """
    import ray

    here, nodes = ray.get_runtime_context().get_node_id(), [n for n in ray.nodes() if n["Alive"]]
    room = {n["NodeID"]: _gangs_on(n["Resources"], cpus, gpus) for n in nodes}
    holding = sum(count > 0 for count in room.values())
    expected = min(-(-gangs // max(1, holding)), room.get(here, 1))
    return max(1, cores() // (max(1, expected) * ranks))


def _gangs_on(has: dict[str, float], cpus: float, gpus: int) -> int:
    asked = [has.get(name, 0.0) / count for name, count in (("CPU", cpus), ("GPU", gpus)) if count]
    return int(min(asked) + 1e-6) if asked else 1
