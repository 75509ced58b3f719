"""Deltas coded with k atoms of a dictionary, beside the same deltas with everything but their second moments
destroyed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix
from deltasae_ray.metrics.coding.omp import Pursuit, pursue
from deltasae_ray.metrics.moments import Spectrum, outside
from deltasae_ray.metrics.statistics import bootstrap_counts, document_codes, document_sums

Average = Literal["energy", "token"]
"""energy: Σ‖residual‖² / Σ‖x‖². token: the mean over tokens of ‖residual‖² / ‖x‖², so that no few large
tokens decide."""


def flips(
    x: Float[Tensor, "token d_model"], spectrum: Spectrum, draws: int, seed: int
) -> list[Float[Tensor, "token d_model"]]:
    """x · U diag(±1) Uᵀ for `draws` random signs, U the eigenvectors of the covariance of x.

    The covariance stays as it is, and so does every distance; what is left of features is gone.
    """
    rng = np.random.default_rng(seed)
    basis = spectrum.vectors.to(x.dtype)
    inside = x @ basis
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(draws, len(spectrum.values)))).to(x.dtype)
    return list(
        ((inside * signs[:, None]).flatten(0, 1) @ basis.T).split(len(x))
    )  # one product: a row at a time is 20 times slower


@dataclass(frozen=True, eq=False)
class Sample:
    """Evaluation deltas that are coded, less the mean of the training deltas and the mean's direction, and
    the same with their structure destroyed.
    """

    x: Float[Tensor, "token d_model"]
    flipped: tuple[Float[Tensor, "token d_model"], ...]
    document: Int[np.ndarray, " token"]
    num_docs: int

    @classmethod
    def of(
        cls,
        deltas: Matrix,
        mean: Float[Tensor, " d_model"],
        spectrum: Spectrum,
        doc_ids: Sequence | np.ndarray,
        *,
        draws: int,
        seed: int,
    ) -> "Sample":
        """From raw deltas, the mean of the training deltas, and the spectrum of what those have outside its
        direction."""
        x = outside(matrix(deltas, "deltas", None) - mean.to(torch.float64), mean).float()
        codes, num_docs = document_codes(doc_ids)
        if len(codes) != len(x):
            raise GeometryError(f"{len(codes)} document ids for {len(x)} deltas: one per row is needed")
        return cls(x, tuple(flips(x, spectrum, draws, seed)), codes, num_docs)

    @property
    def versions(self) -> tuple[Float[Tensor, "token d_model"], ...]:
        """The deltas, then every flip of them."""
        return (self.x, *self.flipped)


@dataclass(frozen=True, eq=False)
class Coded:
    """What is left after k atoms, summed over each document: first the deltas, then every flip."""

    left: Float[np.ndarray, "doc version"]
    """Σ‖residual‖², or Σ‖residual‖²/‖x‖²."""
    total: Float[np.ndarray, "doc version"]
    """Σ‖x‖², or the number of tokens."""

    def fvu(self, counts: Float[np.ndarray, "draw doc"] | None = None) -> Float[np.ndarray, "draw version"]:
        """FVU of each version; for bootstrap draws of documents, or (one row) for all of them once."""
        counts = np.ones((1, len(self.left))) if counts is None else counts
        with np.errstate(divide="ignore", invalid="ignore"):
            return (counts @ self.left) / (counts @ self.total)

    def fvu_without(self) -> Float[np.ndarray, "doc version"]:
        """FVU of each version without each document."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.left.sum(0) - self.left) / (self.total.sum(0) - self.total)


def coded(sample: Sample, pursuits: Sequence[Pursuit], average: Average) -> Coded:
    """Sums, over documents, of the final residuals of one pursuit per version of the sample."""
    left, total = [], []
    for pursuit in pursuits:
        energy = pursuit.residual_energy.double().cpu().numpy()
        scale = energy[:, 0] if average == "token" else np.ones(len(energy))
        inverse = np.divide(
            1.0, scale, out=np.zeros_like(scale), where=scale > 0
        )  # a token that did not change leaves nothing
        left.append(document_sums(energy[:, -1] * inverse, sample.document, sample.num_docs))
        total.append(document_sums(energy[:, 0] * inverse, sample.document, sample.num_docs))
    return Coded(np.stack(left, 1), np.stack(total, 1))


def use_of(x: Float[Tensor, "token d_model"], atoms: Matrix, k: int) -> Float[Tensor, " atom"]:
    """What each atom carries when `x` is coded with k atoms per token: much where it is chosen early, on
    tokens that change most."""
    pursuit = pursue(x, atoms, k)
    gain = (pursuit.residual_energy[:, :-1] - pursuit.residual_energy[:, 1:]).double()
    use = torch.zeros(len(atoms), dtype=torch.float64, device=gain.device)
    return use.index_add_(
        0, pursuit.support.clamp_min(0).ravel(), torch.where(pursuit.support >= 0, gain, 0).ravel()
    )


def most_used(use: Float[Tensor, " atom"], size: int) -> Int[Tensor, " size"]:
    """The `size` atoms that carry most, in the order in which they stand."""
    return use.topk(size).indices.sort().values


@dataclass(frozen=True, eq=False)
class Resamples:
    """Documents drawn with replacement, and with each of them null draws drawn with replacement; shared by
    all that is compared."""

    counts: Float[np.ndarray, "draw doc"]
    picks: Int[np.ndarray, "draw flip"]

    @classmethod
    def draw(cls, num_docs: int, num_flips: int, bootstrap: int, seed: int) -> "Resamples":
        rng = np.random.default_rng([seed, 1])
        return cls(
            bootstrap_counts(num_docs, bootstrap, rng),
            rng.integers(0, num_flips, size=(bootstrap, num_flips)),
        )

    def null_means(self, fvu: Float[np.ndarray, "draw version"]) -> Float[np.ndarray, " draw"]:
        """Mean FVU over the flips, each resample with its own flips; widened, since r draws of r vary by
        (r-1)/r too little."""
        null = fvu[:, 1:]
        center, r = null.mean(1), null.shape[1]
        return center + (np.take_along_axis(null, self.picks, 1).mean(1) - center) * np.sqrt(r / (r - 1))
