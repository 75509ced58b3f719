"""Which base model, and how it is held."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded


@dataclass(frozen=True)
class ModelConfig:
    """The base model that adapters are added to."""

    base: str = "builtin:gemma3-270m"
    """Folder, hub id (`owner/name[@revision]`), or `builtin:gemma3-270m` (Gemma 3 270M, dequantised Q4_K_M,
    from the extra [demo])."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """How the base's weights are held. bf16 takes half the memory and changes nothing where the checkpoint is
    bf16: every weight is cast to fp32 as it is used. A checkpoint in fp32 is rounded, and the rounded model
    is then the base. Adapters stay fp32."""
    sharding: Literal["none", "zero3"] = "none"
    """none: every rank holds the model. zero3: DeepSpeed ZeRO-3 shards the parameters over a gang's ranks,
    and over as many workers where adapters are trained."""
    offload: str = "none"
    """Where a rank's share of sharded parameters waits between passes: none (its device), cpu (the machine's
    memory), or the absolute path of a folder on a fast local disk of every node (files; needs GPUs and
    libaio)."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Leave off unless you have read that code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", expanded(self.base, "model.base"))
        object.__setattr__(self, "offload", expanded(self.offload, "model.offload"))
        if self.offload not in ("none", "cpu") and not Path(self.offload).is_absolute():
            raise ConfigError(
                f"model.offload={self.offload} is neither none nor cpu nor an absolute path: for files, give"
                " a folder on a fast local disk of every node, such as model.offload=/mnt/nvme"
            )
        if self.offload != "none" and self.sharding == "none":
            raise ConfigError(
                f"model.offload={self.offload} moves sharded parameters: set model.sharding=zero3, or"
                " model.offload=none"
            )
        if self.offloads_to_files and self.weights == "bf16":
            raise ConfigError(
                f"model.offload={self.offload} takes model.weights=fp32: DeepSpeed's files are of one type,"
                " and adapters stay fp32"
            )

    @property
    def offloads_to_files(self) -> bool:
        """Whether shares of parameters wait in files of a folder."""
        return self.offload not in ("none", "cpu")
