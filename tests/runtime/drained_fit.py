"""A Ray cluster on this machine whose only worker node is drained, as before a cloud takes it back, while it
fits a dictionary; another one comes. Prints what was seen as JSON."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.run import fit_points, keys_of
from deltasae_ray.storage import Storage
from tests.fit.made import CFG, KEY, make_harvest, point

LONG = replace(CFG, steps=30_000)
POINT = point()


def main(notes: Path) -> None:
    storage = Storage(str(notes / "root"))
    make_harvest(storage)
    key = keys_of(storage, KEY, [POINT], LONG)[POINT]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    node = cluster.add_node(num_cpus=3)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    seen: set[int] = set()
    told: list[str] = []

    def take_the_node_back() -> None:
        while not checkpoint.steps_done(storage, key):
            time.sleep(0.05)
        words = ["deltasae_ray.runtime.spot", "now", "--seconds", "12", "--address", cluster.address]
        notice = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True)
        while notice.poll() is None:
            seen.add(checkpoint.steps_done(storage, key))
            time.sleep(0.02)
        told.append(notice.communicate()[0])
        cluster.add_node(num_cpus=3)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=take_the_node_back, daemon=True)
    thread.start()
    (fitted,) = fit_points(storage, KEY, [POINT], LONG, bar=False)
    thread.join(60)
    reasons = {n["NodeID"]: n.get("DeathReason") for n in ray.nodes()}
    found = {
        "between": sorted(x for x in seen if x % LONG.checkpoint_every),
        "told": told,
        "node": node.node_id,
        "reason": reasons[node.node_id],
        "fitted": fitted.point == POINT,
    }
    (notes / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
