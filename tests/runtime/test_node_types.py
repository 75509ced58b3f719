"""The nodes that a cluster can have, from the very files that its autoscaler reads."""

from pathlib import Path

import pytest
import yaml

from deltasae_ray.errors import ResourceError
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.node_types import NodeType, types_in, with_types
from deltasae_ray.study.cluster_check import check_nodes
from deltasae_ray.study.config import StudyConfig

CLUSTER = Path(__file__).parents[2] / "cluster"
HEAD = {"memory": 5e9, "node:__internal_head__": 1.0}


def shipped(name: str) -> list[NodeType]:
    if name != "kuberay":
        return types_in(yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()))
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return types_in(_derive_autoscaling_config_from_ray_cr(yaml.safe_load((CLUSTER / "kuberay/raycluster.yaml").read_text())))


@pytest.mark.parametrize("name", ["aws", "gcp", "kuberay"])
def test_a_gang_that_no_node_type_holds_is_refused_while_there_is_only_a_head(name: str) -> None:
    (kind,) = shipped(name)
    gpus, nodes = int(kind.has["GPU"]), with_types([HEAD], shipped(name))
    assert kind.most > 0 and len(nodes) == 1 + kind.most
    check_nodes(StudyConfig(adapters=("given",), gangs=GangConfig(ranks=gpus, gpus_per_gang=gpus)), nodes, at_once=1)
    for gangs in (GangConfig(ranks=2 * gpus, gpus_per_gang=2 * gpus), GangConfig(memory_gb=1e5), GangConfig(cpus_per_gang=1000)):
        with pytest.raises(ResourceError, match="do not fit the nodes of this cluster .*gangs.cpus_per_gang, gangs.gpus_per_gang or gangs.memory_gb"):
            check_nodes(StudyConfig(adapters=("given",), gangs=gangs), nodes, at_once=1)


def test_types_without_nodes_allowed_and_the_head_do_not_count_and_nodes_that_are_there_count_once() -> None:
    config = {"head_node_type": "head", "max_workers": 3, "available_node_types": {
        "head": {"resources": {"CPU": 64}, "max_workers": 0}, "never": {"resources": {"CPU": 128}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8, "memory": 10}, "max_workers": 100}, "plain": {"max_workers": 2},
    }}  # fmt: skip
    types = types_in(config)
    assert types == [NodeType("cpu", {"CPU": 8.0, "memory": 10.0}, 3), NodeType("plain", {}, 2)]
    assert with_types([HEAD, {"CPU": 8.0}], types[:1]) == [HEAD, {"CPU": 8.0}, types[0].has, types[0].has]
