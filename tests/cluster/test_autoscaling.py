"""Ray's second autoscaler with the node types of cluster/kuberay/raycluster.yaml, on simulated nodes: Ray's own fake provider starts
them as processes here, so that everything but the cloud and its GPUs is real."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster.namespaces import RAY, isolated, run_isolated

ROOT = Path(__file__).parents[2]
# What the harvest does: a pool of actors that each take all GPUs of a node.
POOL = """
import json, sys, threading, time
import ray
ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="ERROR")
gpus, seen = int(sys.argv[1]), []
def alive():
    return sum(node["Alive"] for node in ray.nodes())
def watch():
    while True:
        if seen[-1:] != [now := alive()]:
            seen.append(now)
        time.sleep(0.2)
threading.Thread(target=watch, daemon=True).start()
class Gang:
    def __call__(self, batch):
        until = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) < 3 and time.monotonic() < until:  # the first node must not take all units
            time.sleep(0.5)
        time.sleep(4)
        return {"id": batch["id"], "node": [ray.get_runtime_context().get_node_id()] * len(batch["id"])}
units = ray.data.range(12).repartition(target_num_rows_per_block=1)
pool = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
rows = units.map_batches(Gang, batch_size=1, num_cpus=1, num_gpus=gpus, compute=pool).take_all()
deadline = time.monotonic() + 120
while alive() > 1 and time.monotonic() < deadline:
    time.sleep(0.5)
time.sleep(1)
print(json.dumps({"seen": seen, "units": sorted(r["id"] for r in rows), "nodes": len({r["node"] for r in rows})}))
"""


def fake_cluster(head_id: str) -> dict:
    """A launcher file with the node types that the autoscaler derives from raycluster.yaml."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    derived = _derive_autoscaling_config_from_ray_cr(yaml.safe_load((ROOT / "cluster/kuberay/raycluster.yaml").read_text()))
    types = derived["available_node_types"]
    # Two CPUs, a gang's and a read task's: a node starts a Python process for each, and here all nodes are one machine.
    types["gpu"]["resources"] = {"CPU": 2, "GPU": types["gpu"]["resources"]["GPU"]}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        **derived,
        # KubeRay's provider, as it is told to leave the inside of a node alone, but for what makes the nodes.
        "provider": {**derived["provider"], "type": "external", "module": module, "head_node_id": head_id, "launch_multiple": True},
        # The fake provider knows the head by this name only.
        "available_node_types": {"ray.head.default": types["headgroup"], "gpu": types["gpu"]},
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 0.15,
    }


@pytest.mark.prove
@pytest.mark.skipif(not isolated(), reason="no namespaces here: needs root, util-linux and iproute2")
def test_pool_of_gangs_brings_gpu_nodes_from_none_and_gives_them_back():
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    config = fake_cluster(FAKE_HEAD_NODE_ID)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        head = ["--head", "--port=6379", "--num-cpus=0", "--object-store-memory=200000000", f"--temp-dir={folder}/r"]
        ids = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        printed = run_isolated(
            ["env", *(f"{k}={v}" for k, v in ids.items()), RAY, "start", *head, f"--autoscaling-config={path}"],
            [sys.executable, "-c", POOL, str(config["available_node_types"]["gpu"]["resources"]["GPU"])],
            env={
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",
            },
            timeout=600,
        )

    outcome = json.loads(printed.splitlines()[-1])
    assert outcome["seen"][0] == 1 and max(outcome["seen"]) == 3 and outcome["seen"][-1] == 1
    assert outcome["units"] == list(range(12))
    assert outcome["nodes"] == 2
