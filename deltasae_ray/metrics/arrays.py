"""How arrays enter: numpy or torch, any float type, on any device; out come finite tensors of one type."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.errors import GeometryError, PrecisionError

Matrix = Float[np.ndarray, "row column"] | Float[Tensor, "row column"]
"""Two-dimensional input of every function here."""


def matrix(x: Matrix, name: str, dtype: torch.dtype | None = torch.float32) -> Float[Tensor, "row column"]:
    """`x` as a detached tensor of `dtype`; None keeps the float type it has.

    Raises:
        GeometryError: not two-dimensional, or empty.
        PrecisionError: NaN or infinity in it.
    """
    t = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if t.ndim != 2 or 0 in t.shape:
        raise GeometryError(
            f"{name} has shape {tuple(t.shape)}: a matrix with at least one row and one column is needed"
        )
    t = t.to(dtype or (t.dtype if t.is_floating_point() else torch.float32))
    # one NaN or infinity makes the sum one, at a fifth of the time; a sum that overflowed is looked at number
    # by number
    if not bool(torch.isfinite(t.sum())) and (bad := int((~torch.isfinite(t)).any(1).sum())):
        raise PrecisionError(
            f"{name} holds NaN or infinity in {bad} of {len(t)} rows: drop them or harvest again"
        )
    return t


def vector(x: np.ndarray | Tensor, name: str, length: int) -> Float[Tensor, " row"]:
    """`x` as a finite fp64 vector of the given length.

    Raises:
        GeometryError: another length.
        PrecisionError: NaN or infinity in it.
    """
    t = (x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))).to(torch.float64).cpu()
    if t.shape != (length,):
        raise GeometryError(
            f"{name} has shape {tuple(t.shape)}, not ({length},): one entry per row is needed"
        )
    if not bool(torch.isfinite(t).all()):
        raise PrecisionError(f"{name} holds NaN or infinity")
    return t


def unit_rows(x: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Rows scaled to norm 1; zero rows stay zero."""
    return x / x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
