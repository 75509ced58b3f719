"""How much of the deltas a dictionary leaves unexplained, beside what nothing but second moments would
leave."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.coding.dictionary_coding import Coder, Coding, Structure
from deltasae_ray.metrics.coding.missing_share import Comparison
from deltasae_ray.metrics.coding.omp import Pursuit, pursue
from deltasae_ray.metrics.coding.sample import Average, Sample
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Spectrum, matched_rows
from deltasae_ray.metrics.ratios import Counts, Ratio, difference, row_energy, with_interval

EXPLAINED = (
    "fvu_delta",
    "fvu_reference",
    "fvu_pca",
    "fvu_random_atoms",
    "gain_over_pca",
    "gain_over_random_atoms",
)
"""What `explained` measures."""


def left_of(sample: Sample, energy_left: Float[np.ndarray, " token"], average: Average) -> Ratio:
    """FVU from what is left of each token of the sample."""
    total = row_energy(sample.x)
    if average == "token":
        energy_left, total = (
            np.divide(energy_left, total, out=np.zeros_like(total), where=total > 0),
            (total > 0).astype(np.float64),
        )
    return Ratio.share(energy_left, total, sample.document, sample.num_docs)


def by_pursuit(sample: Sample, pursuit: Pursuit, k: int, average: Average) -> Ratio:
    return left_of(sample, pursuit.residual_energy[:, k].double().cpu().numpy(), average)


def by_pca(sample: Sample, spectrum: Spectrum, k: int, average: Average) -> Ratio:
    """FVU of the sample outside the k leading directions of the training deltas: the same k numbers per
    token, one fixed basis."""
    top = spectrum.top(k).to(sample.x.dtype)
    return left_of(sample, row_energy(sample.x - (sample.x @ top) @ top.T), average)


@dataclass(frozen=True, eq=False)
class Baselines:
    """What needs no training but second moments, at the same number of coefficients and, for atoms, the same
    size."""

    spectrum: Spectrum
    random_atoms: list[Pursuit]
    """One per draw of atoms from N(0, Σ_δ)."""
    k: int

    @classmethod
    def of(cls, coder: Coder, size: int, seed: int) -> "Baselines":
        generator = torch.Generator().manual_seed(seed)
        k, spectrum = min(coder.k, size), coder.rest.spectrum
        drawn = [
            pursue(coder.sample.x, matched_rows(spectrum, size, generator), k) for _ in coder.sample.flipped
        ]
        return cls(spectrum, drawn, k)


def explained(
    coder: Coder, delta: Coding, comparison: Comparison, baselines: Baselines, average: Average, suffix: str
) -> dict[str, Measure]:
    """FVU by k atoms of the delta dictionary, of the reference, and by the baselines; and whether the delta
    dictionary beats them.

    The baselines have as many atoms as the whole delta dictionary. The reference is as M has it, and so is
    its ceiling.
    """
    counts, sample, k = coder.resamples.counts, coder.sample, baselines.k
    own = by_pursuit(sample, delta.pursuits[0], k, average)
    pca = by_pca(sample, baselines.spectrum, k, average)
    random = [by_pursuit(sample, p, k, average) for p in baselines.random_atoms]
    if not np.isfinite(own.value):
        return {
            f"{name}{suffix}": undefined("the coded deltas are zero", n=sample.num_docs) for name in EXPLAINED
        }
    chance = float(np.mean([r.value for r in random]))
    gain = difference(own, random, counts)
    cut = f"by {comparison.pair.reference}" if comparison.pair.reference.is_cut else ""
    return {
        f"fvu_delta{suffix}": replace(own.measure(counts, null=chance), p=gain.p),
        f"fvu_reference{suffix}": (
            replace(_fvu_of(comparison.reference), ceiling=comparison.delta.fvu).because("note", cut)
        ),
        f"fvu_pca{suffix}": pca.measure(counts, null=1 - k / sample.x.shape[1], ceiling=own.value),
        f"fvu_random_atoms{suffix}": mean_of(random, counts, ceiling=own.value),
        f"gain_over_pca{suffix}": difference(own, [pca], counts),
        f"gain_over_random_atoms{suffix}": gain,
    }


def mean_of(ratios: list[Ratio], counts: Counts, *, ceiling: float) -> Measure:
    """Mean over null draws, with the interval of that mean over documents; null: nothing is explained."""
    measure = Measure(
        float(np.mean([r.value for r in ratios])), null=1.0, ceiling=ceiling, n=len(ratios[0].sums)
    )
    draws, deleted = (np.mean(x, 0) for x in ([r.draws(counts) for r in ratios], [r.deleted for r in ratios]))
    return with_interval(measure, draws, deleted)


def _fvu_of(structure: Structure) -> Measure:
    """FVU of the deltas; null: of their flips, by the same atoms."""
    ratio = Ratio(
        np.stack([structure.coded.left[:, 0], structure.coded.total[:, 0]], 1), lambda s: s[:, 0] / s[:, 1]
    )
    measure = Measure(
        structure.fvu, null=structure.fvu_flipped, p=structure.measure.p, n=len(structure.coded.left)
    )
    return with_interval(measure, ratio.draws(structure.counts), ratio.deleted)


def by_encoder(
    decoded: Float[Tensor, "token d_model"],
    raw: Float[Tensor, "token d_model"],
    mean: Float[Tensor, " d_model"],
    sample: Sample,
) -> Ratio:
    """FVU of the sample's tokens as the dictionary's own encoder and decoder reconstruct them (raw units),
    about the training mean."""
    return Ratio.share(row_energy(raw - decoded), row_energy(raw - mean), sample.document, sample.num_docs)
