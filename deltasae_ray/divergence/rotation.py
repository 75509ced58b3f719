"""The subspace score B(k): a secondary figure, kept since rotations are the null that most people think of."""

from collections.abc import Sequence

import numpy as np
import torch

from deltasae_ray.divergence.arrays import Matrix, matrix
from deltasae_ray.divergence.coding import Resamples, Sample
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.omp import pursue
from deltasae_ray.divergence.ratios import Ratio, with_interval
from deltasae_ray.divergence.reconstruction import by_pursuit
from deltasae_ray.divergence.statistics import document_codes, draws_p


def rotated(sample: Sample, reference: Matrix, k: int, *, draws: int, seed: int) -> list[Ratio]:
    """FVU of the sample by k atoms of Haar-rotated references."""
    generator, x = torch.Generator().manual_seed(seed), sample.x
    found = []
    for _ in range(draws):
        q, r = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator))
        turned = pursue(x @ (q * r.diagonal().sign()).to(x.dtype), reference, min(k, len(reference)))  # as if every atom were turned back
        found.append(by_pursuit(sample, turned, -1, "energy"))
    return found


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
        doc_ids: document of each row; without it every row counts as a document of its own, and the interval is too short.

    Returns:
        p of a reference that codes better than its rotations; the ceiling is 0. Undefined where rotations do as well as the dictionary.
    """
    x = matrix(deltas, "deltas")
    codes, num_docs = document_codes(range(len(x)) if doc_ids is None else doc_ids)
    sample = Sample(x, (), codes, num_docs)
    own, of_reference = (by_pursuit(sample, pursue(x, atoms, min(k, len(atoms))), -1, "energy") for atoms in (dictionary, reference))
    turned = rotated(sample, reference, k, draws=draws, seed=seed)
    return score(own, of_reference, turned, Resamples.draw(num_docs, draws, bootstrap, seed))


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
