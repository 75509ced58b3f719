"""The directions that an adapter's weights write, by module: they need no text, so a trigger cannot hide from
them."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.metrics.geometry.weight_products import Product

OF_MODULE = 4
"""Leading directions of each module that are kept."""
_PREFIX = "base_model.model."
"""PEFT's, before every module's name."""
SHOWN = 3
"""Directions that a verdict lists."""


@dataclass(frozen=True)
class WeightDirection:
    """One left singular vector of a module's B·A: what the module writes for the input that moves it most."""

    module: str
    place: int
    """Among the module's own, from 1."""
    share: float
    """σ² of the direction over the sum of σ² over all modules of the adapter."""
    of_module: float
    """σ² of the direction over the sum of σ² of its module."""
    direction: tuple[float, ...]
    """Unit vector of the module's outputs."""

    def __str__(self) -> str:
        return f"{self.module} ({self.of_module:.0%} of what it adds, {self.share:.0%} of the adapter)"


def weight_directions(changes: Sequence[Product]) -> tuple[WeightDirection, ...]:
    """Takes the leading singular directions of every module; those with most energy come first."""
    factors, total = [], 0.0
    for change in changes:
        energy = change.values.square()
        total += change.energy
        factors += [
            (change.module.removeprefix(_PREFIX), i + 1, float(energy[i]), change.energy, change.left[:, i])
            for i in range(min(OF_MODULE, len(energy)))
            if energy[i] > 0
        ]
    directions = [
        WeightDirection(module, place, own / total, own / whole, tuple(row.float().tolist()))
        for module, place, own, whole, row in factors
    ]
    return tuple(sorted(directions, key=lambda d: (-d.share, d.module, d.place)))


def describe_directions(directions: Sequence[WeightDirection]) -> list[str]:
    """The leading directions in a sentence; empty where there are none."""
    if not directions:
        return []
    first = [d for d in directions if d.place == 1][:SHOWN]
    listed = "; ".join(map(str, first))
    return [
        f"Whatever the text, the weights write most along the first direction of {listed}: weights.parquet"
    ]
