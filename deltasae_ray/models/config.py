"""Which base model, and how it is held."""

from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded


@dataclass(frozen=True)
class ModelConfig:
    """The base model that adapters are added to."""

    base: str = "builtin:gemma3-270m"
    """Folder, hub id (`owner/name[@revision]`), or `builtin:gemma3-270m` (Gemma 3 270M, dequantised Q4_K_M, from the extra [demo])."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """How the base's weights are held. bf16 takes half the memory and changes nothing where the checkpoint is bf16: every weight is cast
    to fp32 as it is used. A checkpoint in fp32 is rounded, and the rounded model is then the base. Adapters stay fp32."""
    sharding: Literal["none", "zero3"] = "none"
    """none: every rank holds the model. zero3: DeepSpeed ZeRO-3 shards the parameters over a gang's ranks, and over as many
    workers where adapters are trained."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where a rank's share of sharded parameters waits between passes: its device, the machine's memory, or files (needs GPUs and
    libaio)."""
    offload_folder: str = ""
    """Folder on a fast local disk, on every node, for model.offload=nvme."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Leave off unless you have read that code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", expanded(self.base, "model.base"))
        if self.offload_folder:
            object.__setattr__(self, "offload_folder", expanded(self.offload_folder, "model.offload_folder"))
        if self.offload != "none" and self.sharding == "none":
            raise ConfigError(f"model.offload={self.offload} moves sharded parameters: set model.sharding=zero3, or model.offload=none")
        if self.offload == "nvme" and not self.offload_folder:
            raise ConfigError("model.offload=nvme needs model.offload_folder, a folder on a fast local disk of every node")
        if self.offload_folder and self.offload != "nvme":
            raise ConfigError(f"model.offload_folder={self.offload_folder!r} is used by model.offload=nvme only: set that, or leave it out")
        if self.offload == "nvme" and self.weights == "bf16":
            raise ConfigError("model.offload=nvme takes model.weights=fp32: DeepSpeed's files are of one type, and adapters stay fp32")
