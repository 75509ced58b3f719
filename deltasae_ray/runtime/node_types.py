"""Kinds of machine of a cluster: those that are there, those that its autoscaler may add, and those that a
cluster file names."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltasae_ray.runtime.gpus import GPU_LABELS, GPU_MIB, GPU_OF_FAMILY, gpu_name
from deltasae_ray.runtime.placement import Node

log = logging.getLogger(__name__)

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
        text = f"{self.name}: {self.cpus:g} CPUs, {(self.memory + self.object_store) / 1e9:.0f} GB"
        if not self.gpus:
            return text
        each = (
            "of unknown memory"
            if self.gpu_bytes is None
            else f"{self.gpu.upper()} of {self.gpu_bytes / 1e9:.1f} GB"
        )
        return f"{text}, {self.gpus:g} GPUs ({each})"


def worker_types(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The node types of a cluster file of which machines may come: not the head, nor what is allowed none."""
    return tuple(kind for kind in _types(config)[1] if kind.at_most > 0)


def _types(config: Mapping[str, Any]) -> tuple[NodeType, list[NodeType]]:
    """The head's, and those of workers."""
    if "available_node_types" in config:
        name, types = config["head_node_type"], config["available_node_types"]
        workers = [_launched(other, settings, config) for other, settings in types.items() if other != name]
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


def _launched(name: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> NodeType:
    has, machine = settings.get("resources") or {}, settings.get("node_config") or {}
    machine_type = str(machine.get("InstanceType") or machine.get("machineType") or "").rpartition("/")[2]
    family = machine_type.partition(".")[0] if "." in machine_type else machine_type.rpartition("-")[0]
    guests = [
        gpu_name(str(g.get("acceleratorType", "")).rpartition("/")[2])
        for g in machine.get("guestAccelerators") or ()
    ]
    by_ray = [gpu_name(word.partition(":")[2]) for word in has if word.startswith("accelerator_type:")]
    gpu = next(filter(None, (*guests, *by_ray)), "") or GPU_OF_FAMILY.get(family, "")
    all_types = int(config.get("max_workers", _MOST))
    most = min(int(settings.get("max_workers", all_types)), all_types, _MOST)
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
    gpu = next((gpu_type for label in GPU_LABELS if (gpu_type := gpu_name(str(labels.get(label, ""))))), "")
    cpus = _quantity(own.get("CPU", started.get("num-cpus", asked.get("cpu", 0))))
    gpus = _quantity(own.get("GPU", started.get("num-gpus", gpus)))
    memory = _quantity(own.get("memory", started.get("memory", asked.get("memory", 0))))
    return _of(name, float(math.ceil(cpus)), gpus, memory, gpu, at_most)


def _quantity(text: Any) -> float:
    """Kubernetes' way to write numbers: 500m, 160Gi."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)(m|[kMGTPE]i?|Ki)?", str(text))
    if not match:
        raise ValueError(f"{text!r} is no quantity")
    number, unit = float(match[1]), match[2] or ""
    return number / 1000 if unit == "m" else number * _UNITS[unit]


def with_types(alive: Sequence[NodeType], types: Sequence[NodeType]) -> list[NodeType]:
    """Nodes that are there, and every type with as many more as it allows; a node with a type's CPUs and GPUs
    counts as one of it."""
    there = [sum((node.cpus, node.gpus) == (kind.cpus, kind.gpus) for node in alive) for kind in types]
    more = [replace(kind, at_most=kind.at_most - count) for kind, count in zip(types, there, strict=True)]
    return [*alive, *(kind for kind in more if kind.at_most > 0)]


def each_node(kinds: Sequence[NodeType]) -> list[Node]:
    """What each machine has, every type as often as it may run at once."""
    return [kind.has for kind in kinds for _ in range(kind.at_most)]
