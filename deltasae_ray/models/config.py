"""Which base model, and how it is held."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """The base model that adapters are added to."""

    base: str = "builtin:gemma3-270m"
    """Folder, hub id, or `builtin:gemma3-270m` (Gemma 3 270M, dequantised Q4_K_M, from the extra [demo])."""
    sharding: Literal["none", "zero3"] = "none"
    """none: every rank holds the model. zero3: DeepSpeed ZeRO-3 shards the parameters over a gang's ranks, and over as many
    workers where adapters are trained."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Leave off unless you have read that code."""
