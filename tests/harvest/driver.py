"""A tiny harvest in a process of its own, with a Ray of its own, that a test can strike: root ranks nodes
model adapter…"""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from deltasae_ray.runtime.local import start_local
from tests.harvest.study import run

SITES = ("resid_post", "lora")
"""Both kinds of columns, of one width and of several."""
LOST = "lost-node"
"""File below the root: the process id of the raylet whose node is to be taken away."""


def take_away(cluster: Cluster, wish: Path) -> None:
    """Waits for the wish and takes the node from the cluster."""
    while not wish.exists():
        time.sleep(0.01)
    raylet = int(wish.read_text())
    (node,) = [n for n in cluster.worker_nodes if raylet in (p.pid for _, p in n.live_processes())]
    cluster.remove_node(node, allow_graceful=False)


def main(root: Path, ranks: int, nodes: int, model: Path, adapters: list[Path]) -> None:
    if nodes == 1:
        start_local(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        run(root, model, adapters, ranks=ranks, sites=SITES)
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    threading.Thread(target=take_away, args=(cluster, root / LOST), daemon=True).start()
    run(root, model, adapters, ranks=ranks, sites=SITES)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    folder, number, count, base, *loras = sys.argv[1:]
    main(Path(folder), int(number), int(count), Path(base), [Path(lora) for lora in loras])
