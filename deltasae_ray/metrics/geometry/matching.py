"""Which latents of one dictionary have a counterpart in another, by the cosine of their decoder rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix, unit_rows, vector
from deltasae_ray.metrics.geometry.isotropic import isotropic_max_cosine
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.moments import Spectrum, matched_rows

_BLOCK_NUMBERS = 1 << 24
"""Cosines held at a time: 64 MB in fp32, whatever the sizes of the dictionaries."""


@dataclass(frozen=True)
class Matches:
    """Best cosine of every latent with the other dictionary."""

    signed: Float[np.ndarray, " latent"]
    absolute: Float[np.ndarray, " latent"]


def unit_pair(decoder: Matrix, reference: Matrix) -> tuple[Tensor, Tensor]:
    a, b = unit_rows(matrix(decoder, "decoder")), unit_rows(matrix(reference, "reference"))
    if a.shape[1] != b.shape[1]:
        raise GeometryError(
            f"decoder rows live in d_model={a.shape[1]}, reference rows in d_model={b.shape[1]}: they are of"
            " different models"
        )
    return a, b.to(a.device)


def cosine_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows of a, their cosines with all rows of b), block by block in one buffer: use each block before
    asking for the next."""
    rows = max(1, _BLOCK_NUMBERS // len(b))
    buffer = a.new_empty(min(rows, len(a)), len(b))
    for start in range(0, len(a), rows):
        block = a[start : start + rows]
        yield slice(start, start + len(block)), torch.mm(block, b.T, out=buffer[: len(block)])


def match(decoder: Matrix, reference: Matrix) -> Matches:
    """Best cosines between the rows of two decoders, [latent, d_model] each.

    Raises:
        GeometryError: another d_model.
    """
    a, b = unit_pair(decoder, reference)
    signed, absolute = a.new_empty(len(a)), a.new_empty(len(a))
    for rows, cosine in cosine_blocks(a, b):
        signed[rows] = cosine.amax(1)
        absolute[rows] = cosine.abs_().amax(1)
    return Matches(*(t.double().clamp(-1, 1).cpu().numpy() for t in (signed, absolute)))


def best_cosines(
    decoder: Matrix, reference: Matrix, *, absolute: bool = False
) -> Float[np.ndarray, " latent"]:
    """max_j cos(d_i, g_j) of every row of `decoder`, or the maximum of |cos|."""
    a, b = unit_pair(decoder, reference)
    best = a.new_empty(len(a))
    for rows, cosine in cosine_blocks(a, b):
        best[rows] = (cosine.abs_() if absolute else cosine).amax(1)
    return best.double().clamp(-1, 1).cpu().numpy()


def max_cosine(
    decoder: Matrix, reference: Matrix, weights: np.ndarray | Tensor | None = None, *, absolute: bool = False
) -> Measure:
    """Mean over the rows of `decoder` [latent, d_model] of the largest cosine with a row of `reference`
    [latent, d_model].

    The null is what isotropic random rows would give, in closed form; activations are anisotropic, so it is
    the lowest bar there is. The interval is over latents, as if these were a sample of the latents that
    training could have found.

    Args:
        weights: one per decoder row, such as its energy E[z²]; by default all count alike.
        absolute: take |cos|; by default the sign counts.

    Raises:
        GeometryError: another d_model, or weights that are negative or all zero.
    """
    best = best_cosines(decoder, reference, absolute=absolute)
    w = np.ones(len(best)) if weights is None else vector(weights, "weights", len(best)).numpy()
    if (w < 0).any() or w.sum() == 0:
        raise GeometryError("weights must be at least 0 and not all 0: give E[z²] of each latent, or none")
    null = isotropic_max_cosine(reference.shape[0], reference.shape[1], absolute=absolute)
    value, se = weighted_mean(best, w)
    if se is None:
        return Measure(value, null=null, n=len(best)).because(
            "ci", "interval undefined: one latent carries all the weight"
        )
    reach = float(stats.t.ppf(0.975, max(1.0, effective_rows(w) - 1))) * se
    return Measure(value, null=null, ci=(value - reach, value + reach), n=len(best))


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a median by order statistics, which no distribution enters."""
    ordered = np.sort(values)
    first = max(0, int(stats.binom.ppf(0.025, len(values), 0.5)) - 1)
    return float(ordered[first]), float(ordered[-1 - first])


def weighted_mean(values: np.ndarray, w: np.ndarray) -> tuple[float, float | None]:
    """Weighted mean over rows and its standard error (None where it rests on one row)."""
    w = w / w.sum()
    mean, freedom = float(w @ values), 1 - float((w**2).sum())
    if freedom <= 1e-12:
        return mean, None
    return mean, float(np.sqrt((w**2 * (values - mean) ** 2).sum() / freedom))


def effective_rows(w: np.ndarray) -> float:
    """(Σw)² / Σw²: how many rows a weighted mean rests on."""
    return float(w.sum() ** 2 / (w**2).sum())


def fraction_above(best: Float[np.ndarray, " latent"], threshold: float) -> float:
    """Share of the latents whose best cosine reaches the threshold."""
    return float((best >= threshold).mean())


def drawn_matches(
    spectrum: Spectrum, reference: Matrix, num_rows: int, *, draws: int, seed: int
) -> list[Matches]:
    """How `num_rows` atoms from N(0, Σ) match the reference, for each of `draws` dictionaries.

    What a dictionary would reach that knows the second moments of the data and nothing else: the primary null
    of matching.
    """
    generator = torch.Generator().manual_seed(seed)
    return [match(matched_rows(spectrum, num_rows, generator), reference) for _ in range(draws)]


def matched_draws(
    spectrum: Spectrum, reference: Matrix, num_rows: int, *, draws: int, seed: int
) -> tuple[Float[np.ndarray, "draw latent"], Float[np.ndarray, "draw latent"]]:
    """Best signed and absolute cosines of those atoms with the reference."""
    cosines = drawn_matches(spectrum, reference, num_rows, draws=draws, seed=seed)
    return np.stack([m.signed for m in cosines]), np.stack([m.absolute for m in cosines])
