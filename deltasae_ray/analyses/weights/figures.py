"""The directions that an adapter's weights write, by module: they need no text, so a trigger cannot hide from
them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

OF_MODULE = 4
"""Leading directions of each module that are kept."""
SHOWN = 3
"""Directions that a verdict lists."""

Pairs = Mapping[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]
"""Module → A and B."""


@dataclass(frozen=True)
class WeightDirection:
    """One left singular vector of a module's B·A: what the module writes for the input that moves it most."""

    module: str
    place: int
    """Among the module's own, from 1."""
    share: float
    """Its σ² over the sum of σ² over all modules of the adapter."""
    of_module: float
    """The same over those of its module."""
    direction: tuple[float, ...]
    """Unit vector of the module's outputs."""

    def __str__(self) -> str:
        return f"{self.module} ({self.of_module:.0%} of what it adds, {self.share:.0%} of the adapter)"


def weight_directions(pairs: Pairs) -> tuple[WeightDirection, ...]:
    """Takes the leading singular directions of every module; those with most energy come first."""
    found, total = [], 0.0
    for module, (a, b) in pairs.items():
        q, r = torch.linalg.qr(b.double())
        inner, values, _ = torch.linalg.svd(r @ torch.linalg.qr(a.double().T).R.T)
        energy, left = values.square(), q @ inner
        total += float(energy.sum())
        found += [
            (module, i + 1, float(energy[i]), float(energy.sum()), left[:, i])
            for i in range(min(OF_MODULE, len(values)))
            if energy[i] > 0
        ]
    made = [
        WeightDirection(module, place, own / total, own / whole, tuple(row.float().tolist()))
        for module, place, own, whole, row in found
    ]
    return tuple(sorted(made, key=lambda d: (-d.share, d.module, d.place)))


def told(directions: Sequence[WeightDirection]) -> list[str]:
    """The leading directions in a sentence; empty where there are none."""
    if not directions:
        return []
    first = [d for d in directions if d.place == 1][:SHOWN]
    listed = "; ".join(map(str, first))
    return [
        f"Whatever the text, the weights write most along the first direction of {listed}: weights.parquet"
    ]
