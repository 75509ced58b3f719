"""Trained against random: whether a figure of an adapter is told from that of random adapters of the same
strength."""

from dataclasses import dataclass

from deltasae_ray.analyses.geometry_figures import Figures
from deltasae_ray.analyses.visibility.layer_figures import difference
from deltasae_ray.metrics.measure import Measure

COMPARED = {
    "not_visible_share": "share of latents not visible",
    "missing_share": "missing share",
    "max_cosine": "max-cosine",
}
"""Figure that has one of random adapters, by name of the catalogue → what it is called."""


@dataclass(frozen=True)
class AgainstRandom:
    """One figure beside that of random adapters."""

    called: str
    own: Measure
    random: Measure
    gap: Measure
    """The adapter's less theirs."""

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference leaves 0 out."""
        return self.gap.ci is not None and (self.gap.ci[0] > 0 or self.gap.ci[1] < 0)

    def __str__(self) -> str:
        if self.gap.value is None:
            return f"{self.called}: not known ({self.gap.reason})"
        text = "told apart" if self.differs else "not told apart"
        return f"{self.called} {self.own:.2f}, random {self.random:.2f}: {text}"


def against_random(leaf: Figures) -> list[AgainstRandom]:
    """Compares every figure that has one of random adapters."""
    excesses = []
    for name, called in COMPARED.items():
        random = leaf.measures.get(f"{name}_random_adapter")
        if random is not None:
            own = leaf.over_seeds(name)
            excesses.append(AgainstRandom(called, own, random, difference(own, random)))
    return excesses
