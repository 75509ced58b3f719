"""The nodes that a cluster can have: those that are there, and what its autoscaler may add, also of types with no node yet."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasae_ray.runtime.nodes import autoscaling

log = logging.getLogger(__name__)

Node = Mapping[str, float]
"""What one node has, by Ray's names: "CPU", "GPU", "memory" (bytes)."""
_MOST = 1000
"""Nodes of one type that are counted, where the autoscaler names no limit."""
_ASK_S = 20.0
_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may add."""

    name: str
    has: Node
    most: int
    """Nodes of it, at most."""


def types_in(config: Mapping[str, Any]) -> list[NodeType]:
    """The worker types of a launcher file, or of what Ray's autoscaler derives from a RayCluster."""
    head, most = config.get("head_node_type"), int(config.get("max_workers", _MOST))
    types = []
    for name, settings in (config.get("available_node_types") or {}).items():
        limit = min(int(settings.get("max_workers", most)), most, _MOST)
        if name != head and limit > 0:
            has = {key: float(value) for key, value in (settings.get("resources") or {}).items()}
            types.append(NodeType(name, has, limit))
    return types


def possible_nodes() -> list[Node] | None:
    """What each node has that is there or may be added; None where nodes come on demand and nobody says of what kind."""
    import ray

    alive = [n for n in ray.nodes() if n["Alive"] and n["Resources"]]
    types = _types_of_the_cluster(alive)
    if types is None:
        return None if autoscaling() else [n["Resources"] for n in alive]
    return with_types([n["Resources"] for n in alive], types)


def with_types(alive: Sequence[Node], types: Sequence[NodeType]) -> list[Node]:
    """Nodes that are there, and of every type as many more as it allows; a node with a type's CPUs and GPUs counts as one of it."""
    nodes = list(alive)
    for kind in types:
        there = sum(all(n.get(key, 0.0) == kind.has.get(key, 0.0) for key in ("CPU", "GPU")) for n in alive)
        nodes += [kind.has] * max(0, kind.most - there)
    return nodes


def _types_of_the_cluster(alive: Sequence[Mapping[str, Any]]) -> list[NodeType] | None:
    """As the head knows them, where the autoscaler runs; None where there is no autoscaler that adds nodes, or it does not say."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next((n for n in alive if _HEAD in n["Resources"]), None)
    if head is None:
        return None
    if head["NodeID"] == ray.get_runtime_context().get_node_id():
        return configured_here(ray.get_runtime_context().gcs_address)
    there = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    ask = ray.remote(num_cpus=0, max_retries=0)(configured_here).options(scheduling_strategy=there)
    try:
        return ray.get(ask.remote(ray.get_runtime_context().gcs_address), timeout=_ASK_S)
    except RayError as e:
        log.warning("the head did not say what node types its autoscaler has: %s", e)
        return None


def configured_here(gcs_address: str) -> list[NodeType] | None:
    """The node types of the autoscaler on this machine: of its configuration file, or on KubeRay of the cluster's own description."""
    import yaml

    for file in _files(gcs_address):
        try:
            return types_in(yaml.safe_load(file.read_text()))
        except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as e:
            log.warning("%s does not say what nodes may come: %s", file, e)
    return _of_kuberay()


def _files(gcs_address: str) -> list[Path]:
    """Where the autoscaler of this very cluster reads its configuration, by its command line; and where `ray up` puts it on a head."""
    import psutil

    port, found = gcs_address.rpartition(":")[2], []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        ours = any(word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words)
        if ours and any(word.endswith("monitor.py") for word in words):
            found += [Path(w.partition("=")[2]).expanduser() for w in words if w.startswith("--autoscaling-config=")]
    bootstrap = Path("~/ray_bootstrap_config.yaml").expanduser()
    return found or ([bootstrap] if bootstrap.exists() else [])


def _of_kuberay() -> list[NodeType] | None:
    name, folder = os.environ.get("RAY_CLUSTER_NAME"), Path("/var/run/secrets/kubernetes.io/serviceaccount")
    if not name or not (folder / "namespace").exists():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    try:
        client = node_provider.KubernetesHttpApiClient(namespace=(folder / "namespace").read_text().strip())
        return types_in(autoscaling_config._derive_autoscaling_config_from_ray_cr(client.get(f"rayclusters/{name}")))
    except Exception as e:  # a service account that may not read it, or a server that does not answer: then the plan cannot check
        log.warning("the RayCluster %s could not be read, so nothing is checked against its node types: %s", name, e)
        return None
