"""How deltas are harvested."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError


@dataclass(frozen=True)
class HarvestConfig:
    """What is written beside the adapters' deltas, and how exact they must be."""

    noise_contexts: int = 4
    """Contexts on which the noise floor is measured (fp64, and another batch layout)."""
    min_snr: float = 10.0
    """Refuse deltas whose signal-to-noise energy ratio is below this at every layer; the report says if it was lowered."""
    seed: int = 0
    """Seed of the random adapter."""

    def __post_init__(self) -> None:
        if self.noise_contexts < 1:
            raise ConfigError(f"harvest.noise_contexts={self.noise_contexts} must be at least 1")
        if self.min_snr < 0:
            raise ConfigError(f"harvest.min_snr={self.min_snr} must not be negative")
