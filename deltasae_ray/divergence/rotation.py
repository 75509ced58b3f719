"""The subspace score B(k): a secondary figure, kept since rotations are the null that most people think of."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.arrays import Matrix, matrix
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.omp import pursue
from deltasae_ray.divergence.statistics import draws_p


def rotated_fvus(x: Float[Tensor, "token d_model"], reference: Matrix, k: int, *, draws: int, seed: int) -> Float[np.ndarray, " draw"]:
    """FVU of centred deltas by k atoms of Haar-rotated references."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        q, r = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator))
        turned = x @ (q * r.diagonal().sign()).to(x.dtype)  # turning x is turning every atom back
        found.append(pursue(turned, reference, min(k, len(reference))).fvu(min(k, len(reference))))
    return np.array(found)


def subspace_score(deltas: Matrix, dictionary: Matrix, reference: Matrix, k: int = 8, *, draws: int = 5, seed: int = 0) -> Measure:
    """B(k) = (FVU_G - FVU_Δ) / (FVU_rot - FVU_Δ): 0, the reference codes the centred deltas as their own dictionary does; 1, no better
    than rotated by chance. It calls random atoms from the deltas' own covariance aligned, so it never leads.

    Returns:
        p of a reference that codes better than its rotations; the ceiling is 0. Undefined where rotations do as well as the dictionary.
    """
    x = matrix(deltas, "deltas")
    own, of_reference = (pursue(x, atoms, min(k, len(atoms))).fvu(-1) for atoms in (dictionary, reference))
    return score(own, of_reference, rotated_fvus(x, reference, k, draws=draws, seed=seed), len(x))


def score(own: float, of_reference: float, rotated: Float[np.ndarray, " draw"], tokens: int) -> Measure:
    """B from the FVU by the delta dictionary, by the reference, and by each rotated reference."""
    gap = float(rotated.mean()) - own
    if not gap >= 1e-3:
        return undefined(f"a rotated reference codes the deltas as well as their own dictionary does (FVU {rotated.mean():.3f})", n=tokens)
    spread = 2 * float(((rotated - own) / gap).std(ddof=1))
    p = draws_p(of_reference, rotated, "less")
    return Measure((of_reference - own) / gap, null=1.0, ceiling=0.0, p=p, n=tokens, reason=f"rotated references: 1 ± {spread:.2g}")
