"""What kind of cluster this is."""

import os
from pathlib import Path


def autoscaling() -> bool:
    """Whether nodes come on demand: on a KubeRay cluster, or on the head of one that `ray up` launched.

    The head's own status does not tell: a plain `ray start` reports one too, of an autoscaler that can add nothing.
    """
    return "RAY_CLUSTER_NAME" in os.environ or Path("~/ray_bootstrap_config.yaml").expanduser().exists()


def one_machine() -> bool:
    """Whether Ray is this machine alone, and stays so: whatever ends it ends the driver too."""
    import ray

    return not autoscaling() and sum(node["Alive"] for node in ray.nodes()) == 1
