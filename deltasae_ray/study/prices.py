"""What machines cost, at list prices: dollars before a run, by the plan, and so far, by a metric."""

from collections.abc import Iterable

from deltasae_ray.runtime.node_types import NodeType

DOLLARS_PER_GPU_HOUR = {
    "t4": 0.98,
    "a10g": 1.42,
    "l4": 1.15,
    "l40s": 2.62,
    "v100": 3.06,
    "v100-32gb": 3.90,
    "a100": 2.75,
    "a100-80gb": 3.43,
    "h100": 6.88,
    "h200": 7.91,
}
"""A share of an Amazon machine on demand in us-east-1, CPUs and memory included, by the price list of 2025.
Spot costs a third to a half of it; what you pay is in your account."""
DOLLARS_PER_CPU_HOUR = 0.05
"""Of machines without GPUs."""


def dollars_per_hour(nodes: Iterable[NodeType]) -> float:
    """What these machines cost together; one whose GPU has no known price costs its CPUs alone."""
    return sum(
        node.gpus * DOLLARS_PER_GPU_HOUR[node.gpu]
        if node.gpu in DOLLARS_PER_GPU_HOUR
        else node.cpus * DOLLARS_PER_CPU_HOUR
        for node in nodes
    )
