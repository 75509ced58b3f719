"""The kinds of machine that a cluster file lets Ray start, also those of which there is none yet; and what their GPUs hold."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deltasae_ray.errors import ConfigError

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
"""Memory of one GPU as the NVIDIA driver reports it, in MiB: less than its name says, since some is kept for error correction."""
_INSTANCES = {
    "g4dn": "t4", "g5": "a10g", "g6": "l4", "g6e": "l40s", "p3": "v100", "p3dn": "v100-32gb", "p4d": "a100", "p4de": "a100-80gb",
    "p5": "h100", "p5e": "h200", "p5en": "h200",
    "g2-standard": "l4", "a2-highgpu": "a100", "a2-megagpu": "a100", "a2-ultragpu": "a100-80gb", "a3-highgpu": "h100", "a3-megagpu": "h100",
    "a3-ultragpu": "h200",
}  # fmt: skip
"""Family of Amazon's and Google's machines → their GPU."""
_NAMES = {"a100-40gb": "a100", "a100-40g": "a100", "a100-80g": "a100-80gb", "h100-80gb": "h100", "h200-141gb": "h200", "v100-16gb": "v100"}
_LABELS = (
    "cloud.google.com/gke-accelerator", "eks.amazonaws.com/instance-gpu-name", "karpenter.k8s.aws/instance-gpu-name",
    "nvidia.com/gpu.product", "ray.io/accelerator-type",
)  # fmt: skip
"""Labels of Kubernetes nodes that name a GPU."""
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


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
    at_most: int = 0
    """Machines of it that may run at once."""
    gpu: str = ""
    """What its GPU is called; empty where it has none, or that is not known."""

    def __str__(self) -> str:
        told = f"{self.name}: {self.cpus:g} CPUs, {self.memory / 1e9:.0f} GB"
        if not self.gpus:
            return told
        each = "of unknown memory" if self.gpu_bytes is None else f"{self.gpu.upper()} of {self.gpu_bytes / 1e9:.1f} GB"
        return f"{told}, {self.gpus:g} GPUs ({each})"


def gpu_name(word: str) -> str:
    """The name under which GPU_MIB lists a GPU that clouds, Kubernetes labels or Ray call `word`; empty where none is known."""
    plain = re.sub(r"^(nvidia|tesla|geforce)[- _]", "", re.sub(r"^(nvidia)[- _]", "", word.lower())).replace("_", "-").replace(" ", "-")
    plain = re.sub(r"-(sxm\d?|pcie|nvl)(?=-|$)", "", plain)
    plain = _NAMES.get(plain, plain)
    return plain if plain in GPU_MIB else ""


def read_node_types(path: Path) -> tuple[NodeType, ...]:
    """The node types of a file for `ray up` (also of `~/ray_bootstrap_config.yaml` on its head), of a RayCluster or of a RayJob.

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
            f"{path} is no cluster file that node types can be read from ({type(e).__name__}: {e}): give a file of `ray up` with "
            "available_node_types, a RayCluster or a RayJob"
        ) from e


def node_types(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The node types of a cluster file as it was parsed; the head, on which nothing runs, has 0 CPUs."""
    if "available_node_types" in config:
        return tuple(_launched(name, told, config) for name, told in config["available_node_types"].items())
    spec = config["spec"]["rayClusterSpec"] if config["kind"] == "RayJob" else config["spec"]
    head = _pods("head", spec["headGroupSpec"], 1)
    return head, *(_pods(group["groupName"], group, int(group["maxReplicas"])) for group in spec["workerGroupSpecs"])


def of_ray(name: str, resources: Mapping[str, float], at_most: int = 1) -> NodeType:
    """A node, or a node type, by the resources that Ray lists of it: `accelerator_type:L4` names its GPU.

    Its memory is all that Ray counts, that of the object store included: an actor that is not asked for memory may use either.
    """
    memory = resources.get("memory", 0.0) + resources.get("object_store_memory", 0.0)
    named = [gpu_name(word.partition(":")[2]) for word in resources if word.startswith("accelerator_type:")]
    return _of(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory, next(iter(named), ""), at_most)


def _of(name: str, cpus: float, gpus: float, memory: float, gpu: str, at_most: int) -> NodeType:
    return NodeType(name, cpus, gpus, memory, GPU_MIB[gpu] * 2.0**20 if gpus and gpu else None, at_most, gpu if gpus else "")


def _launched(name: str, told: Mapping[str, Any], config: Mapping[str, Any]) -> NodeType:
    has, machine = told.get("resources", {}), told.get("node_config", {})
    kind = str(machine.get("InstanceType") or machine.get("machineType") or "").rpartition("/")[2]
    family = kind.partition(".")[0] if "." in kind else kind.rpartition("-")[0]
    guests = [gpu_name(str(g.get("acceleratorType", "")).rpartition("/")[2]) for g in machine.get("guestAccelerators", ())]
    gpu = next(iter(guests), "") or _INSTANCES.get(family, "")
    most = 1 if name == config.get("head_node_type") else int(told.get("max_workers", config.get("max_workers", 0)))
    return _of(name, float(has.get("CPU", 0)), float(has.get("GPU", 0)), float(has.get("memory", 0)), gpu, most)


def _pods(name: str, group: Mapping[str, Any], at_most: int) -> NodeType:
    pod, started = group["template"]["spec"], group.get("rayStartParams", {})
    limits = pod["containers"][0]["resources"]["limits"]
    labels = pod.get("nodeSelector", {})
    gpu = next((found for label in _LABELS if (found := gpu_name(str(labels.get(label, ""))))), "")
    cpus = float(started.get("num-cpus", _quantity(limits.get("cpu", 0))))
    return _of(name, cpus, _quantity(limits.get("nvidia.com/gpu", 0)), _quantity(limits.get("memory", 0)), gpu, at_most)


def _quantity(text: Any) -> float:
    """Kubernetes' way to write numbers: 500m, 160Gi."""
    found = re.fullmatch(r"([0-9.]+)(m|[kMGT]i?|Ki)?", str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity")
    number, unit = float(found[1]), found[2] or ""
    return number / 1000 if unit == "m" else number * _UNITS[unit]
