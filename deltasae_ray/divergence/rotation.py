"""The subspace score B(k): a secondary figure, kept since rotations are the null that most people think of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.arrays import Matrix, matrix
from deltasae_ray.divergence.coder import Coding
from deltasae_ray.divergence.coding import Average, Resamples, Sample, most_used, use_of
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import rotations
from deltasae_ray.divergence.omp import Pursuit, pursue
from deltasae_ray.divergence.ratios import Ratio, with_interval
from deltasae_ray.divergence.reconstruction import by_pursuit
from deltasae_ray.divergence.sizes import Matched
from deltasae_ray.divergence.statistics import document_codes, draws_p


@dataclass(frozen=True, eq=False)
class Rotations:
    """A coding by the same dictionary turned at random. It is the rows that are turned, as if every atom were turned back."""

    coding: Coding
    turns: list[Float[Tensor, "d_model d_model"]]

    @cached_property
    def _whole(self) -> list[Pursuit]:
        return [self._pursuit(turn, self.coding.atoms) for turn in self.turns]

    @cached_property
    def _use(self) -> list[Float[Tensor, " atom"]]:
        chooser, atoms = self.coding.coder.chooser.x, self.coding.atoms
        return [use_of(chooser @ turn.to(chooser), atoms, min(self.coding.coder.k, len(atoms))) for turn in self.turns]

    def pursuits(self, size: int) -> list[Pursuit]:
        """One per rotation, by `size` atoms: where these are not all, by those that the turned dictionary itself uses most."""
        if size >= len(self.coding.atoms):
            return self._whole
        return [self._pursuit(turn, self.coding.atoms[most_used(use, size)]) for turn, use in zip(self.turns, self._use, strict=True)]

    def _pursuit(self, turn: Tensor, atoms: Tensor) -> Pursuit:
        x = self.coding.coder.sample.x
        return pursue(x @ turn.to(x), atoms, min(self.coding.coder.k, len(atoms)))


def matched_score(pair: Matched, turned: list[Pursuit], average: Average = "energy") -> Measure:
    """B of two dictionaries of matched sizes.

    Args:
        turned: the sample by each rotated reference, of the size that the reference has here.
    """
    coder = pair.delta.whole.coder
    own, of_reference, *null = (
        by_pursuit(coder.sample, p, -1, average) for p in (pair.delta.used.pursuits[0], pair.reference.used.pursuits[0], *turned)
    )
    found = score(own, of_reference, null, coder.resamples)
    return found if found.value is None else found.because(f"sizes: {pair.delta} against {pair.reference}")


def subspace_score(
    deltas: Matrix,
    dictionary: Matrix,
    reference: Matrix,
    k: int = 8,
    *,
    doc_ids: Sequence | np.ndarray | None = None,
    draws: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Measure:
    """B(k) = (FVU_G - FVU_Δ) / (FVU_rot - FVU_Δ): 0, the reference codes the centred deltas as their own dictionary does; 1, no better
    than rotated by chance. It calls random atoms from the deltas' own covariance aligned, so it never leads.

    Args:
        dictionary, reference: as they are: where sizes differ much, the answer is one about sizes (`matched_score`).
        doc_ids: document of each row; without it every row counts as a document of its own, and the interval is too short.

    Returns:
        p of a reference that codes better than its rotations; the ceiling is 0. Undefined where rotations do as well as the dictionary.
    """
    x = matrix(deltas, "deltas")
    codes, num_docs = document_codes(range(len(x)) if doc_ids is None else doc_ids)
    sample = Sample(x, (), codes, num_docs)

    def fvu(rows: Tensor, atoms: Matrix) -> Ratio:
        return by_pursuit(sample, pursue(rows, atoms, min(k, len(atoms))), -1, "energy")

    turned = [fvu(x @ turn.to(x), reference) for turn in rotations(x.shape[1], draws, seed)]
    return score(fvu(x, dictionary), fvu(x, reference), turned, Resamples.draw(num_docs, draws, bootstrap, seed))


def score(own: Ratio, of_reference: Ratio, turned: list[Ratio], resamples: Resamples) -> Measure:
    """B from the FVU by the delta dictionary, by the reference, and by each rotated reference; documents and rotations are resampled."""
    null, n = np.array([r.value for r in turned]), len(own.sums)
    gap = float(null.mean()) - own.value
    if not gap >= 1e-3:
        return undefined(f"a rotated reference codes the deltas as well as their own dictionary does (FVU {null.mean():.3f})", n=n)
    drawn_own, drawn = own.draws(resamples.counts), of_reference.draws(resamples.counts)
    drawn_null = resamples.null_means(np.stack([drawn_own, *(r.draws(resamples.counts) for r in turned)], 1))
    p = draws_p(of_reference.value, null, "less", float((drawn - drawn_null).var(ddof=1)))
    measure = Measure((of_reference.value - own.value) / gap, null=1.0, ceiling=0.0, p=p, n=n)
    spread = 2 * float(((null - own.value) / gap).std(ddof=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        measure = with_interval(measure, (drawn - drawn_own) / (drawn_null - drawn_own))
    return measure.because(f"rotated references: 1 ± {spread:.2g}")
