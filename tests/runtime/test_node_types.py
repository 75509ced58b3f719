"""The nodes that a cluster can have, from the very files that its autoscaler reads."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deltasae_ray.errors import ResourceError
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.node_types import NodeType, each_node, of_ray, with_types, worker_types
from deltasae_ray.study.cluster_check import check_nodes
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.requirements import Needs, obstacle

ROOT = Path(__file__).parents[2]
HEAD = of_ray("head", {"memory": 5e9, "node:__internal_head__": 1.0})
GKE = "tests/cluster/rendered/gke-cluster.yaml"
"""What kustomize makes of cluster/kuberay/gke/cluster."""
NAMES = ("cluster/aws.yaml", "cluster/gcp.yaml", GKE)


def shipped(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_gang_that_no_node_type_holds_is_refused_while_there_is_only_a_head(name: str) -> None:
    (kind,) = types = worker_types(shipped(name))
    gpus, nodes = int(kind.gpus), each_node(with_types([HEAD], types))
    assert kind.at_most > 0 and len(nodes) == 1 + kind.at_most
    check_nodes(
        StudyConfig(adapters=("given",), gangs=GangConfig(ranks=gpus, gpus_per_gang=gpus)), nodes, at_once=1
    )
    for gangs in (
        GangConfig(ranks=2 * gpus, gpus_per_gang=2 * gpus),
        GangConfig(memory_gb=1e5),
        GangConfig(cpus_per_gang=1000),
    ):
        with pytest.raises(
            ResourceError,
            match=(
                "do not fit the nodes of this cluster .*gangs.cpus_per_gang, gangs.gpus_per_gang or"
                " gangs.memory_gb"
            ),
        ):
            check_nodes(StudyConfig(adapters=("given",), gangs=gangs), nodes, at_once=1)


def test_types_without_nodes_allowed_and_the_head_do_not_count_and_nodes_that_are_there_count_once() -> None:
    config = {"head_node_type": "head", "max_workers": 3, "available_node_types": {
        "head": {"resources": {"CPU": 64}, "max_workers": 0}, "never": {"resources": {"CPU": 128},
            "max_workers": 0},
        "cpu": {"resources": {"CPU": 8, "memory": 10}, "max_workers": 100}, "plain": {"max_workers": 2},
    }}  # fmt: skip
    types, node = worker_types(config), of_ray("n", {"CPU": 8.0})
    assert types == (NodeType("cpu", 8, memory=10, at_most=3), NodeType("plain", 0, at_most=2))
    assert with_types([HEAD, node], types[:1]) == [HEAD, node, replace(types[0], at_most=2)]
    assert each_node(with_types([HEAD, node], types[:1])) == [HEAD.has, node.has, types[0].has, types[0].has]


@pytest.mark.parametrize(("name", "memory"), zip(NAMES, (48e9, 24e9, 24e9), strict=True))
def test_a_type_with_no_node_yet_is_held_to_the_memory_of_its_gpus(name: str, memory: float) -> None:
    """As the head of a cluster knows it, with nothing there but the head."""
    kinds = with_types([HEAD], worker_types(shipped(name)))
    fits, lacks = (Needs("harvest", "gang", 1, 1, 1, share * memory, 1e9, 0.0, ()) for share in (0.9, 1.1))
    assert not all(obstacle(fits, kind) for kind in kinds)
    assert [obstacle(lacks, kind)[:14] for kind in kinds] == ["0 CPUs are few", "its GPUs hold "]


GROUPS: list[dict] = [
    {},
    {"limits": {"cpu": "3500m", "memory": "1500Mi", "nvidia.com/gpu": 2}},
    {"requests": {"cpu": 2, "memory": "8G"}, "limits": {"memory": "1e10"}},
    {"limits": {"cpu": "4"}, "started": {"num-cpus": "1", "num-gpus": "3", "memory": "123"}},
    {"limits": {"cpu": "4"}, "own": {"CPU": "6", "GPU": "1", "memory": "2Gi"}},
]


@pytest.mark.parametrize("group", GROUPS)
def test_a_raycluster_is_read_as_rays_own_autoscaler_reads_it(group: dict) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = shipped(GKE)
    cluster["metadata"].setdefault("namespace", "default")
    worker = cluster["spec"]["workerGroupSpecs"][0]
    if group:
        asked = {key: group[key] for key in ("limits", "requests") if key in group}
        worker["template"]["spec"]["containers"][0]["resources"] = asked
        worker |= {
            "rayStartParams": group.get("started", {}),
            "resources": group.get("own", {}),
            "numOfHosts": 2,
        }
    (ours,), theirs = (
        worker_types(cluster),
        _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"][worker["groupName"]],
    )
    assert (ours.name, ours.at_most) == (worker["groupName"], theirs["max_workers"])
    assert ours.has == {"CPU": 0, "GPU": 0, "memory": 0} | theirs["resources"]


def test_what_ray_keeps_for_objects_is_not_asked_of_it_but_may_be_used() -> None:
    node = of_ray("n", {"CPU": 2, "memory": 6e9, "object_store_memory": 2e9})
    asks, uses = (
        Needs("fit", "worker", 1, 1, 0, 0.0, 1e9, 7e9, ()),
        Needs("fit", "worker", 1, 1, 0, 0.0, 7e9, 0.0, ()),
    )
    assert obstacle(asks, node) and not obstacle(uses, node) and obstacle(replace(uses, host_bytes=9e9), node)
