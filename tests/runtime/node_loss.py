"""A Ray cluster of a head and two nodes on this machine, of which one is lost while its gang works; prints
the results as JSON."""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.units import run_units
from tests.runtime.stub import UNITS, Stub


def main(notes: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

    def take_the_node_away() -> None:
        while not (notes / "struck").exists():
            time.sleep(0.05)
        struck = (notes / "struck").read_text()
        (node,) = [n for n in nodes if n.node_id == struck]
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=take_the_node_away, daemon=True).start()
    results = dict(run_units(UNITS, Stub(notes, wait_for_the_end=True), GangConfig(ranks=2)))
    (notes / "results.json").write_text(json.dumps({name: r["number"] for name, r in results.items()}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
