"""Two gangs run units on a Ray whose nodes come on demand; prints which nodes there were over time and what
was run where, as JSON."""

import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ResourceError
from deltasae_ray.runtime.autoscaler import possible_types
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.node_types import each_node
from deltasae_ray.runtime.units import run_units
from deltasae_ray.study.cluster_check import check_nodes
from deltasae_ray.study.config import StudyConfig
from tests.runtime.stub import unit

UNITS = 32


def alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@dataclass(frozen=True)
class Patient:
    """Its workers hold no model, and wait for a worker on a second node."""

    folder: str
    """Where each worker leaves the name of its node."""

    def __call__(self, context: RankContext) -> "PatientWorker":
        return PatientWorker(context, Path(self.folder))


class PatientWorker:
    def __init__(self, context: RankContext, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._node = ray.get_runtime_context().get_node_id()
        (folder / self._node).touch()

    def __call__(self, _unit: TokenBatch, todo: int, *, keep: bool) -> dict[str, Any]:  # noqa: ARG002 - what gangs call
        until = time.monotonic() + 240
        while len(list(self._folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.5)  # the first node must not take all units
        time.sleep(4)
        return {"id": todo, "node": self._node, "device": self._context.device}


def too_large(gpus: int) -> str:
    """How a gang of twice the GPUs of the only node type is refused while that has no node."""
    cfg = StudyConfig(adapters=("given",), gangs=GangConfig(ranks=2 * gpus, gpus_per_gang=2 * gpus))
    kinds = possible_types()
    assert kinds is not None
    nodes = each_node(kinds)
    check_nodes(replace(cfg, gangs=GangConfig(ranks=gpus, gpus_per_gang=gpus)), nodes, at_once=1)
    try:
        check_nodes(cfg, nodes, at_once=1)
    except ResourceError as e:
        return str(e)
    return ""


def main(gpus: int) -> None:
    ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="ERROR")
    seen: list[int] = []

    def watch() -> None:
        while True:
            if seen[-1:] != [now := alive()]:
                seen.append(now)
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    refused = too_large(gpus)
    pool = GangConfig(gangs=2, ranks=gpus, gpus_per_gang=gpus)
    with tempfile.TemporaryDirectory() as folder:
        units = [(unit(i), i) for i in range(UNITS)]
        ran = [result for _, result in run_units(units, Patient(folder), pool)]
    deadline = time.monotonic() + 120
    while alive() > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1)
    sys.stdout.write(json.dumps({"seen": seen, "ran": ran, "refused": refused}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
