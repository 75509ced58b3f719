"""GPUs by the names that clouds, Kubernetes labels and Ray give them."""

import re

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
GPU_OF_FAMILY = {
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
GPU_LABELS = (
    "cloud.google.com/gke-accelerator", "eks.amazonaws.com/instance-gpu-name",
    "karpenter.k8s.aws/instance-gpu-name",
    "nvidia.com/gpu.product", "ray.io/accelerator-type",
)  # fmt: skip
"""Labels of Kubernetes nodes that name a GPU."""


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
