"""How deltas and dictionaries are compared with the reference."""

from dataclasses import dataclass

from deltasae_ray.analyses.controls import CONTROLS, budget
from deltasae_ray.errors import ConfigError

NULL_DRAWS = 5
"""Sign flips of the deltas' eigenvectors, and draws of covariance-matched atoms; fewer are too few for the
spread of a null."""
SEED = 0
"""Seed of every null draw and bootstrap: the same for all studies, so that nobody draws until a figure
pleases."""


@dataclass(frozen=True)
class DivergeConfig:
    """Controls and budgets of the divergence stage."""

    controls: tuple[str, ...] = ("fast",)
    """What the figures are held against besides nulls that need no training: random_lora (a random adapter of
    the same strength), base (a second dictionary of base activations, by the recipe of the grid also beside a
    reference that was given), seeds (a second seed of every delta dictionary: the ceiling), split_half
    (dictionaries of two halves of the documents), gaussian (dictionaries of Gaussian rows with the deltas'
    mean and covariance: would the recipe have shown the same of featureless data?), frozen_decoder
    (dictionaries whose decoder stays random), loss_recovered (deltas patched into the base model), causal
    (what the leading latents do to predictions, taken out of the adapted model and put into the base). fast:
    the first two; full: all. The plan prints what each costs."""

    atoms: int = 8
    """Atoms per token of the missing share M(k), the headline; at most 8 (above, even featureless atoms do
    well)."""
    code_tokens: int = 8192
    """Most evaluation tokens of a text that are sparse-coded for M(k) of the largest dictionaries, spread
    evenly over its documents: 1,024 first, more where the interval of M is longer than .15. All other figures
    are of at most 1,024."""
    bootstrap: int = 1000
    """Resamples of documents behind every interval."""
    latents: int = 10
    """Latents of an adapter and layer that are read through the logit lens: the first by rank and by peak."""
    pairs: int = 200
    """Most pairs of adapters that are compared with each other. A study with more compares only trainings
    that differ in nothing but their seed; 100 adapters have 4,950 pairs."""

    @property
    def chosen(self) -> frozenset[str]:
        """The controls by name, `fast` and `full` spelt out."""
        return frozenset[str]().union(*map(budget, self.controls))

    def __post_init__(self) -> None:
        if unknown := [word for word in self.controls if not budget(word)]:
            raise ConfigError(
                f"diverge.controls={list(self.controls)}: there is no control {unknown[0]!r}; name fast, full"
                f" or any of {', '.join(c.name for c in CONTROLS)}"
            )
        if not 1 <= self.atoms <= 8:
            raise ConfigError(
                f"diverge.atoms={self.atoms} must be in 1..8: above 8 featureless atoms explain most of any"
                " delta"
            )
        if self.bootstrap < 100:
            raise ConfigError(f"diverge.bootstrap={self.bootstrap} is below 100")
        if self.pairs < 0:
            raise ConfigError(f"diverge.pairs={self.pairs} is below 0")
