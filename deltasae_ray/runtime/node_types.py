"""Kinds of machine of a cluster: those that are there, those that its autoscaler may add, and those that a
cluster file names."""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from deltasae_ray.errors import ConfigError
from deltasae_ray.runtime.nodes import autoscaling
from deltasae_ray.runtime.placement import Node

log = logging.getLogger(__name__)

GPU_MIB = {
    "t4": 15_360,
    "v100": 16_384,
    "v100-32gb": 32_768,
    "a10g": 23_028,
    "l4": 23_034,
    "l40s": 46_068,
    "a100": 40_960,
    "a100-80gb": 81_920,
    "h100": 81_559,
    "h200": 143_771,
}
"""Memory of one GPU as the NVIDIA driver reports it, in MiB: less than its name says, since some is kept for
error correction."""
_INSTANCES = {
    "g4dn": "t4", "g5": "a10g", "g6": "l4", "g6e": "l40s", "p3": "v100", "p3dn": "v100-32gb", "p4d": "a100",
    "p4de": "a100-80gb",
    "p5": "h100", "p5e": "h200", "p5en": "h200",
    "g2-standard": "l4", "a2-highgpu": "a100", "a2-megagpu": "a100", "a2-ultragpu": "a100-80gb",
    "a3-highgpu": "h100", "a3-megagpu": "h100",
    "a3-ultragpu": "h200",
}  # fmt: skip
"""Family of Amazon's and Google's machines → their GPU."""
_NAMES = {
    "a100-40gb": "a100",
    "a100-40g": "a100",
    "a100-80g": "a100-80gb",
    "h100-80gb": "h100",
    "h200-141gb": "h200",
    "v100-16gb": "v100",
}
_LABELS = (
    "cloud.google.com/gke-accelerator", "eks.amazonaws.com/instance-gpu-name",
    "karpenter.k8s.aws/instance-gpu-name",
    "nvidia.com/gpu.product", "ray.io/accelerator-type",
)  # fmt: skip
"""Labels of Kubernetes nodes that name a GPU."""
_UNITS = {"": 1.0} | {
    unit: base**power
    for base, units in (
        (1e3, ("k", "M", "G", "T", "P", "E")),
        (2.0**10, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")),
    )
    for power, unit in enumerate(units, 1)
}
_MOST = 1000
"""Nodes of one type that are counted, where the autoscaler names no limit."""
_ASK_S = 20.0
_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class NodeType:
    """A kind of machine."""

    name: str
    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes of the machine that Ray may hand out."""
    gpu_bytes: float | None = None
    """Memory of each GPU; None where its kind is not known."""
    at_most: int = 1
    """Machines of it that may run at once."""
    gpu: str = ""
    """What its GPU is called; empty where it has none, or that is not known."""
    object_store: float = 0.0
    """Bytes that Ray keeps for objects, and hands out to nobody."""

    @property
    def has(self) -> Node:
        """What one machine has, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}

    def __str__(self) -> str:
        told = f"{self.name}: {self.cpus:g} CPUs, {(self.memory + self.object_store) / 1e9:.0f} GB"
        if not self.gpus:
            return told
        each = (
            "of unknown memory"
            if self.gpu_bytes is None
            else f"{self.gpu.upper()} of {self.gpu_bytes / 1e9:.1f} GB"
        )
        return f"{told}, {self.gpus:g} GPUs ({each})"


def gpu_name(word: str) -> str:
    """The name under which GPU_MIB lists a GPU that clouds, Kubernetes labels or Ray call `word`; empty where
    none is known."""
    plain = (
        re.sub(r"^(nvidia|tesla|geforce)[- _]", "", re.sub(r"^(nvidia)[- _]", "", word.lower()))
        .replace("_", "-")
        .replace(" ", "-")
    )
    plain = re.sub(r"-(sxm\d?|pcie|nvl)(?=-|$)", "", plain)
    plain = _NAMES.get(plain, plain)
    return plain if plain in GPU_MIB else ""


def read_node_types(path: Path) -> tuple[NodeType, ...]:
    """The node types of a file for `ray up` (also of `~/ray_bootstrap_config.yaml` on its head), of a
    RayCluster or of a RayJob.

    Raises:
        ConfigError: the file is none of these.
    """
    try:
        config = yaml.safe_load(path.read_text())
        return node_types(config)
    except (OSError, yaml.YAMLError) as e:
        raise ConfigError(f"{path} cannot be read as a cluster file: {e}") from e
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"{path} is no cluster file that node types can be read from ({type(e).__name__}: {e}): give a"
            " file of `ray up` with available_node_types, a RayCluster or a RayJob"
        ) from e


def node_types(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The node types of a cluster file as it was parsed; the head, on which nothing runs, has 0 CPUs."""
    head, workers = _types(config)
    return head, *workers


def worker_types(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The node types of a cluster file of which machines may come: not the head, nor what is allowed none."""
    return tuple(kind for kind in _types(config)[1] if kind.at_most > 0)


def _types(config: Mapping[str, Any]) -> tuple[NodeType, list[NodeType]]:
    """The head's, and those of workers."""
    if "available_node_types" in config:
        name, types = config["head_node_type"], config["available_node_types"]
        workers = [_launched(other, told, config) for other, told in types.items() if other != name]
        return replace(_launched(name, types[name], config), at_most=1), workers
    spec = config["spec"]["rayClusterSpec"] if config["kind"] == "RayJob" else config["spec"]
    groups = spec.get("workerGroupSpecs") or ()
    most = [int(group.get("maxReplicas", _MOST)) * int(group.get("numOfHosts", 1)) for group in groups]
    return _pods("head", spec["headGroupSpec"], 1), [
        _pods(g["groupName"], g, min(n, _MOST)) for g, n in zip(groups, most, strict=True)
    ]


def of_ray(name: str, resources: Mapping[str, float], at_most: int = 1) -> NodeType:
    """A node, or a node type, by the resources that Ray lists of it: `accelerator_type:L4` names its GPU."""
    named = [gpu_name(word.partition(":")[2]) for word in resources if word.startswith("accelerator_type:")]
    kind = _of(
        name,
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        resources.get("memory", 0.0),
        next(iter(named), ""),
        at_most,
    )
    return replace(kind, object_store=resources.get("object_store_memory", 0.0))


def _of(name: str, cpus: float, gpus: float, memory: float, gpu: str, at_most: int) -> NodeType:
    return NodeType(
        name,
        cpus,
        gpus,
        memory,
        GPU_MIB[gpu] * 2.0**20 if gpus and gpu else None,
        at_most,
        gpu if gpus else "",
    )


def _launched(name: str, told: Mapping[str, Any], config: Mapping[str, Any]) -> NodeType:
    has, machine = told.get("resources") or {}, told.get("node_config") or {}
    machine_type = str(machine.get("InstanceType") or machine.get("machineType") or "").rpartition("/")[2]
    family = machine_type.partition(".")[0] if "." in machine_type else machine_type.rpartition("-")[0]
    guests = [
        gpu_name(str(g.get("acceleratorType", "")).rpartition("/")[2])
        for g in machine.get("guestAccelerators") or ()
    ]
    by_ray = [gpu_name(word.partition(":")[2]) for word in has if word.startswith("accelerator_type:")]
    gpu = next(filter(None, (*guests, *by_ray)), "") or _INSTANCES.get(family, "")
    all_types = int(config.get("max_workers", _MOST))
    most = min(int(told.get("max_workers", all_types)), all_types, _MOST)
    return _of(
        name, float(has.get("CPU", 0)), float(has.get("GPU", 0)), float(has.get("memory", 0)), gpu, most
    )


def _pods(name: str, group: Mapping[str, Any], at_most: int) -> NodeType:
    """Reads a group's own `resources`, what Ray is started with, and its first container's limits or
    requests, as KubeRay does."""
    pod, started, own = (
        group["template"]["spec"],
        group.get("rayStartParams") or {},
        group.get("resources") or {},
    )
    container = pod["containers"][0].get("resources") or {}
    asked = {**(container.get("requests") or {}), **(container.get("limits") or {})}
    gpus = next((number for key, number in asked.items() if key.endswith("gpu") and _quantity(number)), 0)
    labels = {**(pod.get("nodeSelector") or {}), **(group.get("labels") or {})}
    gpu = next((found for label in _LABELS if (found := gpu_name(str(labels.get(label, ""))))), "")
    cpus = _quantity(own.get("CPU", started.get("num-cpus", asked.get("cpu", 0))))
    gpus = _quantity(own.get("GPU", started.get("num-gpus", gpus)))
    memory = _quantity(own.get("memory", started.get("memory", asked.get("memory", 0))))
    return _of(name, float(math.ceil(cpus)), gpus, memory, gpu, at_most)


def _quantity(text: Any) -> float:
    """Kubernetes' way to write numbers: 500m, 160Gi."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)(m|[kMGTPE]i?|Ki)?", str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity")
    number, unit = float(found[1]), found[2] or ""
    return number / 1000 if unit == "m" else number * _UNITS[unit]


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


def with_types(alive: Sequence[NodeType], types: Sequence[NodeType]) -> list[NodeType]:
    """Nodes that are there, and every type with as many more as it allows; a node with a type's CPUs and GPUs
    counts as one of it."""
    there = [sum((node.cpus, node.gpus) == (kind.cpus, kind.gpus) for node in alive) for kind in types]
    more = [replace(kind, at_most=kind.at_most - count) for kind, count in zip(types, there, strict=True)]
    return [*alive, *(kind for kind in more if kind.at_most > 0)]


def each_node(kinds: Sequence[NodeType]) -> list[Node]:
    """What each machine has, every type as often as it may run at once."""
    return [kind.has for kind in kinds for _ in range(kind.at_most)]


def _types_of_the_cluster(alive: Sequence[Mapping[str, Any]]) -> tuple[NodeType, ...] | None:
    """As the head knows them, where the autoscaler runs; None where there is no autoscaler that adds nodes,
    or it does not say."""
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

    port, found = gcs_address.rpartition(":")[2], []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        ours = any(word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words)
        if ours and any(word.endswith("monitor.py") for word in words):
            found += [
                Path(w.partition("=")[2]).expanduser() for w in words if w.startswith("--autoscaling-config=")
            ]
    bootstrap = Path("~/ray_bootstrap_config.yaml").expanduser()
    return found or ([bootstrap] if bootstrap.exists() else [])


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
