"""The kinds of machine that the running cluster's autoscaler may add."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deltasae_ray.runtime.node_types import NodeType, of_ray, with_types, worker_types
from deltasae_ray.runtime.nodes import autoscaling

log = logging.getLogger(__name__)

_ASK_S = 20.0
_HEAD = "node:__internal_head__"


def possible_types() -> list[NodeType] | None:
    """Each node that is there, and the types of which more may come; None where nobody says of what kind
    those are."""
    import ray

    alive = [n for n in ray.nodes() if n["Alive"] and n["Resources"]]
    nodes, types = (
        [of_ray(f"node {i}", n["Resources"]) for i, n in enumerate(alive)],
        _types_of_the_cluster(alive),
    )
    if types is None:
        return None if autoscaling() else nodes
    return with_types(nodes, types)


def _types_of_the_cluster(alive: Sequence[Mapping[str, Any]]) -> tuple[NodeType, ...] | None:
    """Node types as the head knows them, where the autoscaler runs; None where no autoscaler adds nodes, or
    it does not say."""
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


def configured_here(gcs_address: str) -> tuple[NodeType, ...] | None:
    """The node types of the autoscaler on this machine: of its configuration file, or on KubeRay of the
    cluster's own description."""
    for file in _files(gcs_address):
        try:
            return worker_types(yaml.safe_load(file.read_text()))
        except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as e:
            log.warning("%s does not say what nodes may come: %s", file, e)
    return _of_kuberay()


def _files(gcs_address: str) -> list[Path]:
    """Where the autoscaler of this very cluster reads its configuration, by its command line; and where `ray
    up` puts it on a head."""
    import psutil

    port, files = gcs_address.rpartition(":")[2], []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        ours = any(word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words)
        if ours and any(word.endswith("monitor.py") for word in words):
            files += [
                Path(w.partition("=")[2]).expanduser() for w in words if w.startswith("--autoscaling-config=")
            ]
    bootstrap = Path("~/ray_bootstrap_config.yaml").expanduser()
    return files or ([bootstrap] if bootstrap.exists() else [])


def _of_kuberay() -> tuple[NodeType, ...] | None:
    name, folder = os.environ.get("RAY_CLUSTER_NAME"), Path("/var/run/secrets/kubernetes.io/serviceaccount")
    if not name or not (folder / "namespace").exists():
        return None
    from ray.autoscaler._private.kuberay import node_provider

    try:
        client = node_provider.KubernetesHttpApiClient(namespace=(folder / "namespace").read_text().strip())
        return worker_types(client.get(f"rayclusters/{name}"))
    # a service account that may not read it, or a server that does not answer: then the plan cannot check
    except Exception as e:
        log.warning(
            "the RayCluster %s could not be read, so nothing is checked against its node types: %s", name, e
        )
        return None
