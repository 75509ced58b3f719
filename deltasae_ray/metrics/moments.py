"""First and second moments in fp64, mergeable: what covariances, spectra and covariance-matched nulls are
made from."""

from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix, unit_rows


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues, descending and never negative, and eigenvectors of a covariance."""

    values: Float[Tensor, " d_model"]
    vectors: Float[Tensor, "d_model d_model"]
    """Columns belong to `values`; the largest entry of each is positive."""

    @classmethod
    def of(cls, covariance: Float[Tensor, "d_model d_model"]) -> "Spectrum":
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        return cls(values.flip(0).clamp_min(0), with_signs(vectors.flip(1)))

    @property
    def rank(self) -> int:
        """Directions that hold more than rounding."""
        return int(
            (self.values > self.values[0] * len(self.values) * torch.finfo(self.values.dtype).eps).sum()
        )

    @property
    def participation_ratio(self) -> float:
        """(Σλ)² / Σλ²: how many directions share the energy; 0 where there is none."""
        return float(self.values.sum() ** 2 / (self.values**2).sum()) if bool(self.values[0] > 0) else 0.0

    def top(self, k: int) -> Float[Tensor, "d_model k"]:
        return self.vectors[:, :k]


@dataclass(frozen=True)
class Moments:
    """Mean and scatter over rows, in fp64. Adding two is the same as having seen all rows at once (Chan et
    al. 1983)."""

    n: int
    mean: Float[Tensor, " d_model"]
    scatter: Float[Tensor, "d_model d_model"]
    """Σ (x - mean)(x - mean)ᵀ: about the mean, since a massive activation's square would swallow the
    variance."""

    @classmethod
    def of(cls, x: Matrix, *, block_rows: int = 8192) -> "Moments":
        """Moments of the rows of `x`, in blocks, so that no fp64 copy of all rows is made."""
        return reduce(
            add,
            (
                cls._of_block(block.to(torch.float64))
                for block in matrix(x, "x", dtype=None).split(block_rows)
            ),
        )

    @classmethod
    def _of_block(cls, block: Float[Tensor, "row d_model"]) -> "Moments":
        mean = block.mean(0)
        return cls(len(block), mean, _gram(block - mean))

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise GeometryError(f"moments of d_model {len(self.mean)} and {len(other.mean)} cannot be merged")
        n = self.n + other.n
        gap = other.mean - self.mean
        return Moments(
            n,
            self.mean + gap * (other.n / n),
            self.scatter + other.scatter + torch.outer(gap, gap) * (self.n * other.n / n),
        )

    def __sub__(self, other: "Moments") -> "Moments":
        """Moments of the rows that are in this but not in `other`, which must be a part of it, not all."""
        n = self.n - other.n
        mean = self.mean + (self.mean - other.mean) * (other.n / n)
        gap = other.mean - mean
        return Moments(n, mean, self.scatter - other.scatter - torch.outer(gap, gap) * (n * other.n / self.n))

    def columns(self, keep: Int[Tensor, " column"]) -> "Moments":
        """Moments of some coordinates only."""
        return Moments(self.n, self.mean[keep], self.scatter[keep][:, keep])

    def outside_mean(self) -> "Moments":
        """Moments of what the rows have outside the direction of their mean."""
        return self._outside_mean

    @cached_property
    def _outside_mean(self) -> "Moments":
        direction = unit_rows(self.mean[None])[0]
        along = self.scatter @ direction
        cross = torch.outer(direction, along)
        scatter = self.scatter - cross - cross.T + (direction @ along) * torch.outer(direction, direction)
        return Moments(self.n, torch.zeros_like(self.mean), scatter)

    @property
    def energy(self) -> float:
        """E‖x‖², the mean included."""
        return float(self.scatter.diagonal().sum() / self.n + self.mean @ self.mean)

    @property
    def mean_share(self) -> float:
        """‖E x‖² / E‖x‖²; 0 where all rows are zero."""
        return float(self.mean @ self.mean / self.energy) if self.energy > 0 else 0.0

    @property
    def covariance(self) -> Float[Tensor, "d_model d_model"]:
        """About the mean, divided by n."""
        return self.scatter / self.n

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues and eigenvectors of the covariance."""
        return Spectrum.of(self.covariance)


def _gram(x: Float[Tensor, "row column"], parts: int = 4) -> Float[Tensor, "column column"]:
    """xᵀx, whose lower half is the upper one: three fifths of the whole product's time."""
    gram = x.new_empty(x.shape[1], x.shape[1])
    edges = [i * x.shape[1] // parts for i in range(parts + 1)]
    for start, end in zip(edges, edges[1:], strict=False):
        gram[start:end, start:] = x[:, start:end].T @ x[:, start:]
        gram[end:, start:end] = gram[start:end, end:].T
    return gram


def outside(
    rows: Float[Tensor, "row d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "row d_model"]:
    """Rows less what they have along a direction of any length (zero: all of them stay). Where next to
    nothing is left, that is rounding, and becomes zero.
    """
    along = unit_rows(direction[None]).to(rows)[0]
    left = rows - torch.outer(rows @ along, along)
    some = left.norm(dim=1) > 1e-5 * rows.norm(dim=1)
    return left * some[:, None]


def with_signs(vectors: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
    """Columns turned so that their largest entry is positive: eigenvectors have no sign of their own."""
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def moments_by_group(x: Matrix, group: Int[np.ndarray, " row"], num_groups: int) -> list[Moments]:
    """Moments of the rows of each group; their sum is that of all rows, and what is left without one is a
    subtraction away."""
    return [Moments.of(x[group == g]) for g in range(num_groups)]


def refined_subspace(
    covariance: Float[Tensor, "d_model d_model"], start: Float[Tensor, "d_model k"], steps: int = 4
) -> Float[Tensor, "d_model k"]:
    """Leading eigenvectors of a covariance that is close to one whose leading eigenvectors are `start`, by
    subspace iteration."""
    basis = start
    for _ in range(steps):
        basis = torch.linalg.qr(covariance @ basis).Q
    _, inside = torch.linalg.eigh(basis.T @ covariance @ basis)
    return basis @ inside.flip(1)


def matched_rows(
    spectrum: Spectrum, num_rows: int, generator: torch.Generator
) -> Float[Tensor, "row d_model"]:
    """Unit rows drawn from N(0, Σ): featureless atoms that share the second moments of the data (fp32)."""
    noise = torch.randn(num_rows, len(spectrum.values), generator=generator, dtype=torch.float32)
    rows = (noise * spectrum.values.sqrt().float()) @ spectrum.vectors.T.float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
