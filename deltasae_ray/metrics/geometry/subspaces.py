"""Principal angles and the subspaces they are taken between. A decoder that spans everything is refused, not
measured."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix, vector
from deltasae_ray.metrics.moments import Moments, Spectrum, with_signs

Angles = Float[np.ndarray, " angle"]
Basis = Float[np.ndarray, "d_model k"]


def orthonormal_basis(a: Matrix, name: str = "a") -> Basis:
    """fp64 orthonormal columns with the span of the columns of `a` [d_model, k].

    Raises:
        GeometryError: as many columns as dimensions (the span is everything), or columns that depend on each
            other.
    """
    columns = matrix(a, name, torch.float64).cpu().numpy()
    d_model, k = columns.shape
    if k >= d_model:
        raise GeometryError(
            f"{name} has {k} columns in d_model={d_model}: its span is the whole space and every angle to it"
            " is 0. Take a principal subspace, or an energy-weighted one of a decoder, of fewer dimensions"
        )
    q, r = np.linalg.qr(columns)
    rank = int(np.linalg.matrix_rank(r))
    if rank < k:
        raise GeometryError(
            f"the {k} columns of {name} span only {rank} dimensions: take {rank} independent ones"
        )
    return q


def principal_angles(a: Matrix, b: Matrix) -> Angles:
    """Angles between the spans of the columns of `a` [d_model, ka] and `b` [d_model, kb]: min(ka, kb)
    radians, ascending, fp64.

    Knyazev and Argentati (2002): from 45 degrees on by the cosines σ(QₐᵀQ_b), below by the sines σ((I -
    QₐQₐᵀ)Q_b), since arccos cannot see an angle under 1e-8.

    Raises:
        GeometryError: another d_model, a span that is everything, or dependent columns.
    """
    qa, qb = orthonormal_basis(a, "a"), orthonormal_basis(b, "b")
    if len(qa) != len(qb):
        raise GeometryError(f"a lives in d_model={len(qa)}, b in d_model={len(qb)}: angles need one space")
    if qa.shape[1] < qb.shape[1]:
        qa, qb = qb, qa
    cosines = np.linalg.svd(qa.T @ qb, compute_uv=False)
    sines = np.linalg.svd(qb - qa @ (qa.T @ qb), compute_uv=False)[::-1]
    return np.where(cosines**2 >= 0.5, np.arcsin(np.clip(sines, 0, 1)), np.arccos(np.clip(cosines, 0, 1)))


def principal_subspace(x: Matrix, k: int) -> Basis:
    """Leading k principal directions of the centred rows of `x` [token, d_model], as orthonormal columns
    [d_model, k].

    Raises:
        GeometryError: k is not between 1 and d_model - 1, or the rows hold fewer than k directions.
    """
    x = matrix(x, "x", torch.float64)
    num_rows, d_model = x.shape
    if not 1 <= k < d_model:
        raise GeometryError(f"k={k} principal directions of d_model={d_model}: choose 1 to {d_model - 1}")
    spectrum = Moments.of(x).spectrum if num_rows > d_model else _thin_spectrum(x - x.mean(0))
    if k > spectrum.rank:
        raise GeometryError(
            f"k={k} principal directions asked for, the {num_rows} centred rows hold {spectrum.rank}: lower k"
            " or add rows"
        )
    return spectrum.top(k).cpu().numpy()


def _thin_spectrum(centred: Float[Tensor, "token d_model"]) -> Spectrum:
    """From fewer rows than dimensions: only as many eigenvectors as rows."""
    _, s, vt = torch.linalg.svd(centred, full_matrices=False)
    return Spectrum(s**2 / len(centred), with_signs(vt.T))


def decoder_spectrum(decoder: Matrix, energy: np.ndarray | Tensor) -> Spectrum:
    """Right singular vectors, and squared singular values, of diag(√E z²) · W_dec [latent, d_model]: what the
    dictionary writes most."""
    rows = matrix(decoder, "decoder", torch.float64).cpu()
    weighted = rows * vector(energy, "energy", len(rows)).clamp_min(0).sqrt()[:, None]
    return Spectrum.of(weighted.T @ weighted)


def mean_degrees(angles: Angles) -> float:
    """Mean of angles in radians, in degrees."""
    return float(np.degrees(angles).mean())
