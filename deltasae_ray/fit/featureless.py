"""Rows with the moments of the deltas and nothing beyond them: what the recipe finds in these, it would have
found in anything."""

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.moments import Moments

_BLOCK = 8192
"""Rows drawn at a time."""


def gaussian_rows(rows: Float[Tensor, "token d_model"], seed: int) -> Float[Tensor, "token d_model"]:
    """Draws as many rows from N(μ, Σ) of `rows`, fp32. The same rows and seed give the same draw, whoever
    makes it again after a kill.

    Drawn by the symmetric root of Σ: eigenvectors of near-equal eigenvalues are not the same on every
    machine, their root is.
    """
    moments, generator = Moments.of(rows), torch.Generator().manual_seed(seed)
    spectrum = moments.spectrum
    root = ((spectrum.vectors * spectrum.values.sqrt()) @ spectrum.vectors.T).float()
    mean, drawn = moments.mean.float(), torch.empty(len(rows), len(root))
    for block in drawn.split(_BLOCK):
        torch.addmm(mean, torch.randn(block.shape, generator=generator), root, out=block)
    return drawn
