"""A fit worker's share of its node: of the memory, and with it how many training rows it may hold, and of the
cores."""

import os
from collections.abc import Mapping
from pathlib import Path

from deltasae_ray.fit.config import CPUS_PER_WORKER, FitConfig

HELD = 0.25
"""Share of a worker's memory for the rows of the reads that it holds. A read needs its rows twice for a
moment, halves of the documents and featureless controls are copies, and weights, moments and Ray want room
too."""


def machine_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of this machine, or what its container may use of it (cgroup v2 or v1)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int((root / name).read_text()))
        except (OSError, ValueError):  # no limit: "max", or no such file
            continue
    return min(limits)


def node_bytes() -> int:
    """What Ray lets the processes of this node use: its object store's part is another's, and `ray start
    --memory` may say less."""
    return min(machine_bytes(), int(node_resources().get("memory", machine_bytes())))


def node_resources() -> Mapping[str, float]:
    """What Ray lists of this node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(n for n in ray.nodes() if n["NodeID"] == here)["Resources"]


def workers_on(node: Mapping[str, float], cfg: FitConfig, workers: int, own: int = 1) -> int:
    """How many fit workers may stand on a node at once: those of all trials, or as many as the node holds,
    where that is fewer.

    Args:
        workers: of one trial.
        own: of this trial, which are there.
    """
    room = float(workers * cfg.at_once)
    for name, asked in (("CPU", CPUS_PER_WORKER), ("GPU", cfg.gpus_per_worker)):
        if asked:
            room = min(room, node.get(name, 0.0) / asked + 1e-6)  # of sums of fractions such as 0.1
    return max(own, int(room))


def describe_rows(num_bytes: int, reads: int, workers: int, memory: int) -> str:
    """What the plan says of the rows that a worker holds at once, and what to do where they are too many.

    Args:
        num_bytes: of the rows of one source at one hookpoint.
        reads: which are held together whatever they take.
        workers: that share `memory` bytes.
    """
    room = HELD * memory / workers
    text = f"{num_bytes * reads / 1e6:,.0f} MB a fit worker"
    if num_bytes * reads <= room:
        return f"{text}, more where dictionaries train together, up to {room / 1e6:,.0f} MB"
    return (
        f"{text}, which CANNOT BE HELD where all workers are on one node with the memory of this machine:"
        f" {HELD:.0%} of {memory / 1e6:,.0f} MB is {room / 1e6:,.0f} MB where {workers} share it. Take"
        " storage.deltas=stream, a smaller corpus.fit_tokens, fewer fit.workers or"
        " fit.max_concurrent_trials, or nodes with more memory"
    )
