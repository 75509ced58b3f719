"""How deltas and dictionaries are compared with the reference."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError


@dataclass(frozen=True)
class DivergeConfig:
    """Nulls, draws and budgets of the divergence stage."""

    k: int = 8
    """Atoms per token of the missing share M(k), the headline; at most 8 (above, even featureless atoms do well)."""
    code_tokens: int = 1024
    """Evaluation tokens that are sparse-coded for M(k), spread evenly over the evaluation documents."""
    null_draws: int = 5
    """Sign flips of the deltas' eigenvectors, and draws of covariance-matched atoms."""
    bootstrap: int = 1000
    """Resamples of documents behind every interval."""
    top_contexts: int = 5
    """Contexts shown per latent in the report, beside as many random ones."""
    latents: int = 10
    """Latents shown per adapter and layer in the report."""
    seed: int = 0
    """Seed of every null draw and bootstrap."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 8:
            raise ConfigError(f"diverge.k={self.k} must be in 1..8: above 8 featureless atoms explain most of any delta")
        if self.null_draws < 5:
            raise ConfigError(f"diverge.null_draws={self.null_draws} is below 5, too few for the spread of the null")
        if self.bootstrap < 100:
            raise ConfigError(f"diverge.bootstrap={self.bootstrap} is below 100")
