"""What featureless, isotropic vectors give, in closed form. Shown for comparison; real activations are
anisotropic."""

from functools import lru_cache

import numpy as np
from scipy.special import betainc, betaincc, betainccinv

from deltasae_ray.errors import GeometryError


@lru_cache
def isotropic_max_cosine(num_rows: int, d_model: int, *, absolute: bool = False) -> float:
    """E[max_j cos(v, g_j)] for `num_rows` independent random unit rows g_j in `d_model` dimensions.

    t² ~ Beta(1/2, (d-1)/2) gives the distribution F of one cosine, F^N that of the maximum, and the mean is 1
    - ∫ F^N over [-1, 1].
    """
    _check_dimensions(num_rows, d_model)
    # the integrand changes within a few 1/√d of zero: a grid in that unit, and one for the flat rest
    reach = min(1.0, 14.0 / np.sqrt(d_model))
    s = np.unique(np.concatenate([np.linspace(-reach, reach, 40_001), np.linspace(-1.0, 1.0, 4_001)]))
    a, b = 0.5, (d_model - 1) / 2
    if absolute:
        s = s[s >= 0]
        return float(1 - np.trapezoid(betainc(a, b, s**2) ** num_rows, s))
    upper = 0.5 * betaincc(
        a, b, s**2
    )  # P(cos > |s|), kept apart: 1 - upper loses nothing of a small tail in log1p
    log_f = np.where(s >= 0, np.log1p(-upper), np.log(np.maximum(upper, 1e-300)))
    return float(1 - np.trapezoid(np.exp(num_rows * log_f), s))


@lru_cache
def isotropic_median_cosine(num_rows: int, d_model: int) -> float:
    """Median of max_j cos(v, g_j) for `num_rows` independent random unit rows g_j in `d_model` dimensions:
    where F^N = 1/2."""
    _check_dimensions(num_rows, d_model)
    upper = -np.expm1(
        np.log(0.5) / num_rows
    )  # P(cos > median), at most 1/2, so that the median is not negative
    return float(np.sqrt(betainccinv(0.5, (d_model - 1) / 2, 2 * upper)))


def isotropic_share_below(threshold: float, num_rows: int, d_model: int) -> float:
    """P(max_j cos(v, g_j) < threshold) for a threshold of at least 0 and `num_rows` independent random unit
    rows: F^N."""
    _check_dimensions(num_rows, d_model)
    upper = 0.5 * betaincc(0.5, (d_model - 1) / 2, threshold**2)
    return float(np.exp(num_rows * np.log1p(-upper)))


def _check_dimensions(num_rows: int, d_model: int) -> None:
    if d_model < 2 or num_rows < 1:
        raise GeometryError(
            f"no cosine in d_model={d_model} with {num_rows} rows: at least 2 dimensions and 1 row are needed"
        )


@lru_cache
def random_subspace_angle(ka: int, kb: int, d_model: int) -> float:
    """Mean principal angle, in degrees, between independent random subspaces of dimensions `ka` and `kb`.

    Wachter's law from 16 dimensions on (within 0.2 degrees); below, the mean of 4000 draws of the Beta matrix
    whose eigenvalues are the squared cosines (always the same draws).
    """
    if not 0 < ka < d_model or not 0 < kb < d_model:
        raise GeometryError(
            f"subspaces of {ka} and {kb} dimensions in d_model={d_model}: each must be between 1 and"
            f" {d_model - 1}"
        )
    ka, kb = min(ka, kb), max(ka, kb)
    return _drawn_angle(ka, kb, d_model) if ka < 16 else _wachter_angle(ka, kb, d_model)


def _wachter_angle(ka: int, kb: int, d_model: int) -> float:
    p, q = ka / d_model, kb / d_model
    shared = max(0, ka + kb - d_model) / ka  # where they must intersect the angle is exactly 0
    low, high = ((np.sqrt(q * (1 - p)) + sign * np.sqrt(p * (1 - q))) ** 2 for sign in (-1, 1))
    t = (np.arange(20_000) + 0.5) / 20_000 * np.pi - np.pi / 2
    squared_cosine = (low + high) / 2 + (high - low) / 2 * np.sin(t)
    density = np.cos(t) ** 2 / (squared_cosine * (1 - squared_cosine))
    angle = np.degrees(np.arccos(np.sqrt(np.clip(squared_cosine, 0, 1))))
    return float((1 - shared) * (density * angle).sum() / density.sum())


def _drawn_angle(ka: int, kb: int, d_model: int, draws: int = 4000) -> float:
    rng = np.random.default_rng([ka, kb, d_model])
    inside, outside = _wisharts(rng, ka, kb, draws), _wisharts(rng, ka, d_model - kb, draws)
    squared_cosine = np.linalg.eigvals(np.linalg.solve(inside + outside, inside)).real
    return float(np.degrees(np.arccos(np.sqrt(np.clip(squared_cosine, 0, 1)))).mean())


def _wisharts(rng: np.random.Generator, size: int, dof: int, draws: int) -> np.ndarray:
    """[draws, size, size] Wishart matrices by Bartlett's factor; a singular one where dof < size."""
    factor = np.zeros((draws, size, min(size, dof)))
    for j in range(factor.shape[2]):
        factor[:, j, j] = np.sqrt(rng.chisquare(dof - j, size=draws))
        factor[:, j + 1 :, j] = rng.normal(size=(draws, size - j - 1))
    return factor @ factor.transpose(0, 2, 1)
