"""A change that lives in few directions, such as that of an adapter in one module: which of them the
reference holds.

Latents of such a change mix what is written as they like, so that there are no ten features to count. Its
directions can be counted instead, all of them: the reference's atoms that lie inside the change's subspace
are found one after the other, each outside those before it, and what they reach is held against the same for
as many base latents and for the subspace flipped.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.moments import Moments, Spectrum
from deltasae_ray.metrics.visibility.decision import LatentLabel, judge
from deltasae_ray.metrics.visibility.expression import TURNED, Metric, Scale
from deltasae_ray.metrics.visibility.leading import DirectionVisibility
from deltasae_ray.metrics.visibility.structured import Texts

WIDEST, PART = 16, 4
"""Directions up to which a change is narrow, and the part of all (a fourth) that they may be."""
HOLDING = 0.99
"""Of the variance above the floor, that these directions hold."""
ABOVE = 2.0
"""Times the largest eigenvalue of white rows, scaled to the median one, above which a direction counts."""
DRAWS = 40
"""Subspaces of base latents, and flipped ones, behind the scale."""
PAIRED = 32
"""Atoms that lie nearest to a subspace, whose pairs are tried."""
SLIM = 16
"""Part of all directions (a sixteenth) up to which pairs are tried: wider subspaces hold some by chance."""
_SINGLE = 0.95
"""Share of what a pair reaches from which one atom is taken alone."""
_ALIKE = 0.1
"""1 - cosine² under which two atoms are no pair: a difference of copies points anywhere."""


def narrow_basis(deltas: Moments) -> Float[Tensor, "d_model direction"] | None:
    """Orthonormal columns that span a narrow change; None where a change is wider.

    The floor is the median eigenvalue, which is that of white noise where the change is narrow.
    """
    values, d = deltas.spectrum.values, len(deltas.spectrum.values)
    floor = float(values.median())
    edge = ABOVE * (1 + (d / deltas.n) ** 0.5) ** 2 * floor
    above = (values - floor)[(values > edge) & (values > 0)]
    if not len(above):
        return None
    size = int((above.cumsum(0) < HOLDING * above.sum()).sum()) + 1
    return deltas.spectrum.top(size) if size <= min(WIDEST, d // PART) else None


@dataclass(frozen=True, eq=False)
class Inside:
    """Directions of a subspace in the order in which a reference reaches them."""

    scores: Float[np.ndarray, " direction"]
    """Of each, the largest correlation with a combination of two atoms, outside the directions before it."""
    directions: Float[Tensor, "direction d_model"]
    """Orthonormal rows that span the subspace."""

    @classmethod
    def of(cls, basis: Float[Tensor, "d_model direction"], atoms: Float[Tensor, "atom d_model"]) -> "Inside":
        """Finds the directions, from atoms of norm 1."""
        basis = basis.double()
        within = (atoms @ basis.to(atoms)).double()
        left, reached = torch.ones(len(atoms), dtype=torch.float64), torch.zeros(0, basis.shape[1]).double()
        scores = []
        for _ in range(basis.shape[1]):
            score, direction = _next(within, left, atoms, reached)
            direction = direction - reached.T @ (reached @ direction)
            direction = direction / direction.norm().clamp_min(torch.finfo(torch.float64).tiny)
            left = (left - (within @ direction).square()).clamp_min(1e-9)
            reached = torch.cat([reached, direction[None]])
            scores.append(score)
        return cls(np.array(scores), (reached @ basis.T).float())


def _next(within: Tensor, left: Tensor, atoms: Tensor, reached: Tensor) -> tuple[float, Tensor]:
    """What two atoms reach of the subspace outside the directions reached already, and where.

    Args:
        within: atoms in coordinates of the subspace.
        left: squared norm of each atom outside the directions reached.
    """
    inside = within - within @ reached.T @ reached
    alone = inside.square().sum(1) / left
    alone[left < _ALIKE] = 0  # an atom that is used up says no more than rounding
    near = alone.topk(min(PAIRED, len(alone))).indices
    single = float(alone[near[0]])
    if within.shape[1] * SLIM > atoms.shape[1]:
        return float(np.sqrt(min(1.0, single))), inside[near[0]]
    b = inside[near] @ inside[near].T
    g = (atoms[near] @ atoms[near].T).double() - within[near] @ reached.T @ reached @ within[near].T
    g.diagonal().copy_(left[near])
    bb, gg = b.diagonal(), g.diagonal()
    det = gg[:, None] * gg - g * g
    half = (bb[:, None] * gg + bb * gg[:, None]) / 2 - b * g
    root = (half.square() - det * (bb[:, None] * bb - b * b)).clamp_min(0).sqrt()
    both = torch.where(det > _ALIKE * gg[:, None] * gg, (half + root) / det.clamp_min(1e-12), 0.0)
    both = torch.where((gg[:, None] < _ALIKE) | (gg < _ALIKE), 0.0, both)
    best = float(both.max())
    if single >= _SINGLE**2 * best:
        return float(np.sqrt(min(1.0, max(best, single)))), inside[near[0]]
    i, j = divmod(int(both.argmax()), len(near))
    first, second = g[i, j] * best - b[i, j], bb[i] - best * gg[i]
    mixed = first * inside[near[i]] + second * inside[near[j]]
    return float(np.sqrt(min(1.0, best))), mixed


def turned(
    basis: Float[Tensor, "d_model direction"], base: Spectrum, draws: int, rng: np.random.Generator
) -> list[Tensor]:
    """The subspace by sign flips in the eigenbasis of the base activations, one flip for all its
    directions; a subspace at random where a flip turns next to nothing."""
    inside = base.vectors.T @ basis.double()
    turns = []
    for signs in rng.choice([-1.0, 1.0], size=(draws, len(inside))):
        flip = torch.from_numpy(signs)[:, None] * inside
        if float((inside.T @ flip).square().sum()) >= TURNED**2 * basis.shape[1]:
            flip = torch.linalg.qr(torch.from_numpy(rng.standard_normal(tuple(inside.shape)))).Q
        turns.append(base.vectors @ flip)
    return turns


@dataclass(frozen=True, eq=False)
class Narrow:
    """A narrow change with all its directions judged."""

    basis: Float[Tensor, "d_model direction"]
    directions: Float[Tensor, "direction d_model"]
    """Orthonormal rows that span the same subspace, in the order in which the reference reaches them."""
    judged: tuple[DirectionVisibility, ...]

    @classmethod
    def of(
        cls,
        deltas: Moments,
        metric: Metric,
        present: Float[Tensor, "latent d_model"],
        atoms: Float[Tensor, "atom d_model"],
        texts: Texts,
        seed: int,
    ) -> "Narrow | None":
        """Judges every direction of a narrow change; None where a change is wider, or base latents are too
        few to say what a direction scores that the reference holds.

        Args:
            deltas: moments of the training deltas.
            present: repeating base latents that the reference expresses, unit rows.
            atoms: of the reference.
            texts: evaluation deltas; a direction without structure cannot be missed.
        """
        basis = narrow_basis(deltas)
        if basis is None or len(present) <= basis.shape[1]:
            return None
        rng, atoms, size = np.random.default_rng([seed, 17]), unit_rows(atoms.float()), basis.shape[1]
        inside = Inside.of(basis, atoms)
        chosen = (rng.choice(len(present), size, replace=False) for _ in range(DRAWS))
        known = [torch.linalg.qr(present[torch.from_numpy(x)].double().T).Q for x in chosen]
        held, absent = (
            np.sort([Inside.of(x, atoms).scores for x in some], axis=0)
            for some in (known, turned(basis, metric.base, DRAWS, rng))
        )
        shaped, labels, ps = (
            texts.structured(inside.directions, seed),
            list[LatentLabel](),
            list[float | None](),
        )
        for i, score in enumerate(inside.scores):
            scale = Scale(held[:, i], absent[:, i])
            one = judge(np.array([score]), scale)
            blind = not scale.separates or (one.labels[0] != "visible" and not shaped[i])
            labels.append("cannot be judged" if blind else one.labels[0])
            ps.append(None if blind else float(one.p[0]))
        spread = deltas.covariance @ inside.directions.double().T
        share = (inside.directions.double().T * spread).sum(0) / deltas.spectrum.values.sum()
        judged = zip(share.tolist(), labels, ps, strict=True)
        return cls(basis, inside.directions, tuple(DirectionVisibility(*x) for x in judged))

    @property
    def in_words(self) -> str:
        """What there is, and how it was judged, in words."""
        count = Counter(x.label for x in self.judged)
        listed = ", ".join(f"{n} {label}" for label, n in count.items())
        return f"a narrow change: {len(self.judged)} directions hold it, and all are counted: {listed}"

    def holding(self, rows: Float[Tensor, "row d_model"]) -> Float[np.ndarray, " row"]:
        """Length that unit rows have along the directions that are visible."""
        kept = [x.label == "visible" for x in self.judged]
        return (rows.float() @ self.directions[kept].T).norm(dim=1).double().numpy()

    def outside(self, rows: Float[Tensor, "row d_model"], least: float) -> int:
        """Rows that have a length under `least` inside the subspace."""
        return int(((rows.float() @ self.basis.float()).norm(dim=1) < least).sum())

    def interval(self) -> tuple[float, float]:
        """Share of directions that are not visible: a count of all there are, half a direction to either
        side where it is neither none nor all."""
        lost, n = sum(x.label == "not visible" for x in self.judged), len(self.judged)
        unsure = sum(x.label in ("partly", "cannot be judged") for x in self.judged)
        low = 1.0 if lost == n else max(0.0, lost - 0.5) / n
        high = 0.0 if not lost + unsure else min(n, lost + unsure + 0.5) / n
        return low, high
