"""The mean change, scored apart: a narrow fine-tune may live there and nowhere else."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.metrics.arrays import Matrix, unit_rows
from deltasae_ray.metrics.coding.omp import pursue
from deltasae_ray.metrics.coding.sample import flips
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Spectrum
from deltasae_ray.metrics.ratios import Counts, row_energy, with_interval
from deltasae_ray.metrics.statistics import document_sums, permutation_p

ATOMS = 8
"""Atoms of the reference that may explain the mean."""
LUCK = 1e-3
"""p up to which the mean is said to be coded better than its flips. It is one vector, whose interval over
documents does not know how much flips differ among themselves, and a verdict may rest on it at any layer of
any adapter: at .05 one unrelated shift in twenty would pass for partly visible."""


@dataclass(frozen=True, eq=False)
class MeanVector:
    """The constant vector in the deltas, with its flips and its resamples: what any reference is asked to
    express."""

    share: Measure
    """Of the energy."""
    value: Float[Tensor, "1 d_model"]
    null: Float[Tensor, "flip d_model"]
    draws: Float[Tensor, "draw d_model"]
    """In every resample of the documents. All three as unit rows in fp32: thousands of rows are coded by
    every reference, and fp64 would take twice as long and change no digit that is shown."""
    seed: int

    @classmethod
    def of(
        cls,
        deltas: Float[Tensor, "token d_model"],
        document: Int[np.ndarray, " token"],
        base: Spectrum,
        counts: Counts,
        *,
        draws: int = 1999,
        seed: int = 0,
    ) -> "MeanVector":
        """From evaluation deltas.

        Args:
            deltas: raw. With every row scaled to norm 1 the vector is the mean of the tokens' directions, and
                its share their squared mean resultant length (Mardia & Jupp 2000): no few large tokens decide
                where it points.
            base: spectrum of the BASE activations. The null flips the mean's signs in its eigenbasis: the
                reference lives where base activations do, and a shift may lie along one eigenvector of the
                deltas themselves, where their own flips would leave it.
        """
        num_docs = counts.shape[1]
        sums = document_sums(deltas.cpu().numpy(), document, num_docs)
        tokens = np.bincount(document, minlength=num_docs).astype(np.float64)
        energy = document_sums(row_energy(deltas), document, num_docs)
        share = _share(sums, tokens, energy, counts, np.random.default_rng(seed))
        mean = torch.from_numpy(sums.sum(0) / tokens.sum())[None]
        flipped, resampled = (
            torch.cat(flips(mean, base, draws, seed)),
            torch.from_numpy((counts @ sums) / (counts @ tokens)[:, None]),
        )
        value, null, drawn = (unit_rows(x).float() for x in (mean, flipped, resampled))
        return cls(share, value, null, drawn, seed)

    def against(self, reference: Matrix) -> dict[str, Measure]:
        """Share of the energy that is this vector, and the part of it that the reference cannot express, over
        its null."""
        if not bool(self.value.any()):
            return {
                "mean_share": self.share,
                "mean_missing_share": undefined("the mean change is zero", n=self.share.n),
            }
        value, null, draws = (
            _unexplained(getattr(self, name), reference) for name in ("value", "null", "draws")
        )
        p = permutation_p(float(value[0]), null, "less", np.random.default_rng([self.seed, ATOMS]))
        return {
            "mean_share": self.share,
            "mean_missing_share": _missing(self.share, float(value[0]), null, draws, p),
        }


def _missing(
    share: Measure,
    value: float,
    null: Float[np.ndarray, " flip"],
    resampled: Float[np.ndarray, " draw"],
    p: float,
) -> Measure:
    """The unexplained part over its null; the interval reaches 1 wherever flipped means are explained as well
    as the mean is."""
    center = float(null.mean())
    if share.p is not None and share.p > 0.05:
        return undefined(
            "the mean change is no larger than that of documents which change in random directions",
            null=1.0,
            n=share.n,
        )
    if center < 0.05:
        return undefined("any few atoms express the mean change, featureless or not", null=1.0, n=share.n)
    measure = with_interval(
        Measure(value / center, null=1.0, ceiling=0.0, p=p, n=share.n), resampled / center
    )
    if measure.ci is None or p <= LUCK:
        return measure
    text = (
        f"the interval reaches 1: as much of a mean with flipped signs is explained in {p:.2g} of the draws,"
        f" more than {LUCK:g}"
    )
    return replace(measure, ci=(measure.ci[0], max(1.0, measure.ci[1]))).because("note", text)


def _unexplained(rows: Tensor, reference: Matrix) -> Float[np.ndarray, " row"]:
    energy = pursue(rows, reference, min(ATOMS, len(reference))).residual_energy
    return (energy[:, -1] / energy[:, 0]).cpu().numpy()


def _share(
    sums: np.ndarray, tokens: np.ndarray, energy: np.ndarray, counts: Counts, rng: np.random.Generator
) -> Measure:
    """‖μ‖² / E‖δ‖²; the null gives every document's sum a random sign, as if documents changed in no common
    direction."""
    if energy.sum() == 0:
        return undefined("the deltas are zero", n=len(tokens))
    scale = tokens.sum() * energy.sum()
    value = float((sums.sum(0) ** 2).sum() / scale)
    signs = rng.choice([-1.0, 1.0], size=(199, len(tokens)))
    null = ((signs @ sums) ** 2).sum(1) / scale
    draws = ((counts @ sums) ** 2).sum(1) / ((counts @ tokens) * (counts @ energy))
    return with_interval(
        Measure(value, null=float(null.mean()), p=permutation_p(value, null, "greater", rng), n=len(tokens)),
        draws,
    )
