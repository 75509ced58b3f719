"""How deltas are harvested."""

from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.hookpoints import Site


@dataclass(frozen=True)
class HarvestConfig:
    """What is written beside the adapters' deltas, and how exact they must be."""

    precision: Literal["fp32", "mixed"] = "fp32"
    """mixed: products of linear layers in bf16 by difference propagation, everything else in fp32; the noise
    floor says what it costs."""
    sites: tuple[Site, ...] = ("resid_post",)
    """What is stored at every layer: resid_post always; attn_out and mlp_out are what attention and MLP add
    to the residual stream; lora is the change s·B·A·u that a plain LoRA adapter makes to the output of each
    module it adapts, as its low-rank coordinates s·A·u: nothing is subtracted, and a token takes as many
    numbers as the adapter has ranks."""
    noise_contexts: int = 4
    """Contexts on which the noise floor is measured (a higher precision, and another batch layout), and the
    random adapter's strength is matched: with another number both are made anew, also of a finished
    harvest."""
    min_snr: float = 10.0
    """Refuse deltas whose signal-to-noise energy ratio is below this at any layer; the report says if it was
    lowered."""

    def __post_init__(self) -> None:
        if self.noise_contexts < 1:
            raise ConfigError(f"harvest.noise_contexts={self.noise_contexts} must be at least 1")
        if self.min_snr < 0:
            raise ConfigError(f"harvest.min_snr={self.min_snr} must not be negative")
        if "resid_post" not in self.sites:
            raise ConfigError(
                f"harvest.sites={list(self.sites)} must hold resid_post: dictionaries are fitted on it"
            )
