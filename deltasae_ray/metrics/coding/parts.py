"""Atoms that code together in parts, some of which are turned: products within a part stay when it is turned,
so that only those between parts are made anew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.coding.omp import GRAM_ATOMS, Pursuit, gram_columns, pursue


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the atoms."""

    atoms: Float[Tensor, "atom d_model"]
    """Of norm 1."""
    within: Float[Tensor, "atom atom"]
    """Products of these."""

    @classmethod
    def of(cls, atoms: Float[Tensor, "atom d_model"]) -> "Part":
        unit = unit_rows(atoms)
        return cls(unit, unit @ unit.T)

    def turned(self, atoms: Float[Tensor, "atom d_model"]) -> "Part":
        """The same atoms after an orthogonal turn of all."""
        return Part(atoms, self.within)


def between(one: Part, other: Part) -> Float[Tensor, "atom other_atom"]:
    """Products of the atoms of two parts."""
    return one.atoms @ other.atoms.T


def pursue_parts(
    x: Float[Tensor, "token d_model"],
    parts: Sequence[Part],
    k: int,
    products: Callable[[Part, Part], Tensor] = between,
) -> Pursuit:
    """Codes rows with k atoms of all parts together, as `pursue` does.

    Args:
        products: `between`, or a cache of it where parts come together again.
    """
    atoms = torch.cat([part.atoms for part in parts])
    if len(atoms) > GRAM_ATOMS:
        return pursue(x, atoms, k)
    gram = atoms.new_zeros(len(atoms), gram_columns(len(atoms)))
    ends = torch.tensor([0, *(len(part.atoms) for part in parts)]).cumsum(0).tolist()
    places = [slice(*ends[i : i + 2]) for i in range(len(parts))]
    for i, one in enumerate(parts):
        gram[places[i], places[i]] = one.within
        for j in range(i + 1, len(parts)):
            product = products(one, parts[j])
            gram[places[i], places[j]], gram[places[j], places[i]] = product, product.T
    return pursue(x, atoms, k, gram)
