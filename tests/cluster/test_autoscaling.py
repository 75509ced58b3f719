"""Ray's second autoscaler with the node types of cluster/kuberay/gke/cluster, on simulated nodes: Ray's
own fake provider starts them as processes here, so that everything but the cloud and its GPUs is real."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster.namespaces import RAY, isolated, run_isolated
from tests.cluster.pool import UNITS

ROOT = Path(__file__).parents[2]


def fake_cluster(head_id: str) -> dict:
    """A launcher file with the node types that the autoscaler derives from raycluster.yaml."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    derived = _derive_autoscaling_config_from_ray_cr(
        yaml.safe_load((ROOT / "tests/cluster/rendered/gke-cluster.yaml").read_text())
    )
    types = derived["available_node_types"]
    # Two CPUs, a gang's and a read task's: a node starts a Python process for each, and here all nodes are
    # one machine.
    types["gpu"]["resources"] = {"CPU": 2, "GPU": types["gpu"]["resources"]["GPU"]}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        **derived,
        # KubeRay's provider, as it is told to leave the inside of a node alone, but for what makes the nodes.
        "provider": {
            **derived["provider"],
            "type": "external",
            "module": module,
            "head_node_id": head_id,
            "launch_multiple": True,
        },
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
        head = [
            "--head",
            "--port=6379",
            "--num-cpus=0",
            "--object-store-memory=200000000",
            f"--temp-dir={folder}/r",
        ]
        ids = {
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        printed = run_isolated(
            [
                "env",
                *(f"{k}={v}" for k, v in ids.items()),
                RAY,
                "start",
                *head,
                f"--autoscaling-config={path}",
            ],
            [
                sys.executable,
                "-m",
                "tests.cluster.pool",
                str(config["available_node_types"]["gpu"]["resources"]["GPU"]),
            ],
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
    assert sorted(unit["id"] for unit in outcome["ran"]) == list(range(UNITS))
    assert {unit["device"] for unit in outcome["ran"]} == {"cuda"}, "ranks were given the GPUs of their node"
    assert len({unit["node"] for unit in outcome["ran"]}) == 2
    assert "do not fit the nodes of this cluster" in outcome["refused"], (
        "a gang that no node type can hold, while there is no node of any"
    )
