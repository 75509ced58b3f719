"""Principal angles as figures: over a curve of k, each with a covariance-matched null, a ceiling and an interval."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.context import Context, DictionaryLike, living_energy, living_rows
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import Moments, Spectrum, matched_rows, refined_subspace
from deltasae_ray.divergence.ratios import Ratio
from deltasae_ray.divergence.statistics import MIN_DOCUMENTS, document_codes, document_sums, draws_p, jackknife_interval, kappa
from deltasae_ray.divergence.subspaces import decoder_spectrum, mean_degrees, principal_angles, subspace_overlap

_OVERSAMPLING = 16
"""Directions beyond the last k that the jackknife's subspace iteration carries along."""


def curve(d_model: int) -> list[int]:
    """Dimensions at which subspaces are compared: powers of two up to a quarter of the space, at most 512."""
    return [1 << i for i in range(10) if (1 << i) <= max(1, d_model // 4)]


def angle(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Mean principal angle between the spans of two sets of columns, in degrees."""
    return mean_degrees(principal_angles(a, b))


def pca_angles(context: Context) -> dict[str, Measure]:
    """Leading k principal directions of the deltas against those of the base activations, both of the training rows.

    Null: the span of k directions drawn from N(0, Σ_δ). Ceiling: the deltas' own directions on the evaluation documents. Interval: a
    jackknife over tenths of the training documents.
    """
    delta, base = context.delta.spectrum, context.base.spectrum
    again = Moments.of(context.inputs.delta_eval).spectrum
    draws = _drawn_directions(delta, context)
    refitted = _jackknifed_subspaces(context)
    num_docs = document_codes(context.inputs.fit_docs)[1]
    measures: dict[str, Measure] = {}
    for k in curve(len(delta.values)):
        a, b = delta.top(k), base.top(k)
        if k > min(delta.rank, base.rank):
            reason = f"fewer than {k} directions hold any energy"
            measures |= {f"angle_pca_k{k}": undefined(reason), f"overlap_pca_k{k}": undefined(reason)}
            continue
        value, ceiling = angle(a, b), angle(a, again.top(k))
        null = np.array([angle(d[:, :k], b) for d in draws])
        deleted = np.array([angle(x[:, :k], y[:, :k]) for x, y in refitted])
        interval, se = jackknife_interval(value, deleted)
        ratio, reason = kappa(value, float(null.mean()), ceiling, float(np.hypot(se, null.std(ddof=1))), "less")
        few = num_docs < MIN_DOCUMENTS
        measure = Measure(
            value,
            null=float(null.mean()),
            ceiling=ceiling,
            ci=None if few else _within(interval, 0, 90),
            p=draws_p(value, null, "less"),
            kappa=ratio,
        )
        measures[f"angle_pca_k{k}"] = replace(measure, n=num_docs).because(reason)
        overlap = subspace_overlap(a, b)
        measures[f"overlap_pca_k{k}"] = Measure(overlap, null=k / len(delta.values), ceiling=subspace_overlap(a, again.top(k)), n=num_docs)
    return measures


def _within(interval: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    return max(low, interval[0]), min(high, interval[1])


def _drawn_directions(spectrum: Spectrum, context: Context) -> list[Float[Tensor, "d_model k"]]:
    generator = torch.Generator().manual_seed(context.settings.seed)
    k = curve(len(spectrum.values))[-1]
    return [matched_rows(spectrum, k, generator).T for _ in range(context.settings.null_draws)]


def _jackknifed_subspaces(context: Context) -> list[tuple[Float[Tensor, "d_model k"], Float[Tensor, "d_model k"]]]:
    """Leading directions of deltas and base activations without each tenth of the training documents."""
    d_model = len(context.delta.mean)
    k = min(d_model, curve(d_model)[-1] + _OVERSAMPLING)
    start = context.delta.spectrum.top(k), context.base.spectrum.top(k)
    return [
        (refined_subspace((context.delta - d).covariance, start[0]), refined_subspace((context.base - b).covariance, start[1]))
        for d, b in zip(context.delta_groups, context.base_groups, strict=True)
    ]


def projection_energies(context: Context) -> dict[str, Measure]:
    """Share of the evaluation deltas' variance inside the leading k principal directions of the base activations; null k / d_model."""
    document, num_docs = context.documents
    d_model = len(context.delta.mean)
    steps = curve(d_model)
    rows = torch.from_numpy(np.asarray(context.inputs.delta_eval)).float() - context.delta.mean.float()
    inside = (rows @ context.base.spectrum.top(steps[-1]).float()).square().cumsum(1).double().numpy()
    total = rows.square().sum(1).double().numpy()
    sums = document_sums(np.column_stack([inside[:, [k - 1 for k in steps]], total]), document, num_docs)
    return {
        f"projection_energy_k{k}": Ratio(sums[:, [i, -1]], _quotient).measure(context.counts, null=k / d_model, ceiling=1.0)
        for i, k in enumerate(steps)
    }


def _quotient(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def decoder_angles(context: Context, dictionary: DictionaryLike, second: DictionaryLike | None) -> dict[str, Measure]:
    """What two dictionaries write most: leading k right singular vectors of the energy-weighted decoders, each weighted on its own data.

    Null: decoder rows drawn from N(0, Σ_δ) under the same energies. Ceiling: the second seed of the delta dictionary.
    """
    rows, energy = living_rows(dictionary), living_energy(dictionary)
    generator = torch.Generator().manual_seed(context.settings.seed)
    drawn = [matched_rows(context.delta.spectrum, len(rows), generator) for _ in range(context.settings.null_draws)]
    own, null = decoder_spectrum(rows, energy), [decoder_spectrum(d, energy) for d in drawn]
    twin = None if second is None else decoder_spectrum(living_rows(second), living_energy(second))
    reference = context.reference_spectrum
    measures: dict[str, Measure] = {}
    for k in curve(rows.shape[1]):
        name = f"angle_decoder_k{k}"
        if k > min(own.rank, reference.rank):
            measures[name] = undefined(f"the latents that carry energy span fewer than {k} directions", n=len(rows))
            continue
        value, by_chance = angle(own.top(k), reference.top(k)), np.array([angle(d.top(k), reference.top(k)) for d in null])
        ceiling = None if twin is None or k > twin.rank else angle(own.top(k), twin.top(k))
        ratio, reason = kappa(value, float(by_chance.mean()), ceiling, float(by_chance.std(ddof=1)), "less")
        p = draws_p(value, by_chance, "less")
        measure = Measure(value, null=float(by_chance.mean()), ceiling=ceiling, p=p, kappa=ratio, n=len(rows))
        measures[name] = measure.because(reason).because("interval undefined: it would take refitted dictionaries")
    return measures
