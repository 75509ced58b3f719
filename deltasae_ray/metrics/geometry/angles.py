"""Principal angles as figures: over a curve of k, each with a covariance-matched null, a ceiling and an
interval."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.adapter_layer import GROUPS, AdapterLayer
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.subspaces import decoder_spectrum, mean_degrees, principal_angles
from deltasae_ray.metrics.inputs import DictionaryLike, living_energy, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments, moments_by_group, refined_subspace
from deltasae_ray.metrics.statistics import (
    MIN_DOCUMENTS,
    TOO_FEW_DOCUMENTS,
    TOO_FEW_TRAINING_DOCUMENTS,
    draws_p,
    jackknife_interval,
    kappa,
)

_OVERSAMPLING = 16
"""Directions beyond the last k that the jackknife's subspace iteration carries along."""
REFITS = "interval undefined: one dictionary, it takes refitted ones (see …_seeds)"


def curve(d_model: int) -> list[int]:
    """Dimensions at which subspaces are compared: powers of two up to a quarter of the space, at most 512."""
    return [1 << i for i in range(10) if (1 << i) <= max(1, d_model // 4)]


def angle(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Mean principal angle between the spans of two sets of columns, in degrees."""
    return mean_degrees(principal_angles(a, b))


def pca_angles(layer: AdapterLayer) -> dict[str, Measure]:
    """Leading k principal directions of the deltas against those of the base activations, both of the
    training rows.

    Null: the span of k directions drawn from N(0, Σ_δ). Ceiling: the deltas' own directions on the evaluation
    documents. Intervals: a jackknife over tenths of the training documents; for kappa a tenth of the
    evaluation documents is left out with each, so that value, null and ceiling move together (the drawn
    directions stay, and their spread enters as variance). There is no p: principal directions are never draws
    from N(0, Σ_δ), so that "they are" is no hypothesis that could hold.
    """
    delta, base = layer.delta.spectrum, layer.base.spectrum
    num_docs, d_model = layer.fit_documents[1], len(delta.values)
    steps = [k for k in curve(d_model) if k <= min(delta.rank, base.rank)]
    missing = {
        k: undefined(f"fewer than {k} directions hold any energy") for k in curve(d_model) if k not in steps
    }
    measures = {f"angle_pca_k{k}": m for k, m in missing.items()}
    if not steps:
        return measures
    groups = _moments_by_eval_group(layer)
    again = reduce(add, groups)
    drawn = [np.linalg.qr(d.T.double().numpy())[0] for d in layer.drawn(curve(d_model)[-1])]
    whole = _Placed.of(delta.top(steps[-1]), base.top(steps[-1]), again.spectrum.top(steps[-1]), drawn, steps)
    resampled = _without_tenths(layer, groups, again, drawn, steps) if num_docs >= MIN_DOCUMENTS else None
    for i, k in enumerate(steps):
        value = angle(delta.top(k), base.top(k))
        measures |= {
            f"angle_pca_k{k}": _angle_measure(value, whole, resampled, i, num_docs, layer.documents[1])
        }
    return measures


@dataclass(frozen=True, eq=False)
class _Placed:
    """Mean angles, in degrees, over a curve of k, of one pair of covariances."""

    value: Float[np.ndarray, " step"]
    null: Float[np.ndarray, "draw step"]
    ceiling: Float[np.ndarray, " step"]

    @classmethod
    def of(
        cls, delta: Tensor, base: Tensor, again: Tensor, drawn: list[np.ndarray], steps: list[int]
    ) -> "_Placed":
        """From orthonormal columns, the leading ones first: those of a smaller k are a corner of one
        product."""
        a, b, c = (x.double().cpu().numpy() for x in (delta, base, again))
        null = np.stack([_mean_angles(d.T @ b, steps) for d in drawn])
        return cls(_mean_angles(a.T @ b, steps), null, _mean_angles(a.T @ c, steps))

    @property
    def place(self) -> Float[np.ndarray, " step"]:
        """κ at every k."""
        null = self.null.mean(0)
        return (self.value - null) / (self.ceiling - null)


def _mean_angles(cosines: np.ndarray, steps: list[int]) -> Float[np.ndarray, " step"]:
    """From QₐᵀQ_b, in degrees; arccos is exact enough for how a mean moves."""
    singular = (np.linalg.svd(cosines[:k, :k], compute_uv=False) for k in steps)
    return np.array([mean_degrees(np.arccos(np.clip(s, 0, 1))) for s in singular])


def _angle_measure(
    value: float, whole: _Placed, resampled: list[_Placed] | None, i: int, num_docs: int, eval_docs: int
) -> Measure:
    null, ceiling = whole.null[:, i], float(whole.ceiling[i])
    center = float(null.mean())
    if resampled is None:
        measure = Measure(value, null=center, ceiling=ceiling, n=num_docs)
        return measure.because("ci", TOO_FEW_TRAINING_DOCUMENTS.format(n=num_docs)).because(
            "kappa", "so is kappa"
        )
    interval, _ = jackknife_interval(value, np.array([r.value[i] for r in resampled]))
    _, gap_se = jackknife_interval(0.0, np.array([r.ceiling[i] - r.null[:, i].mean() for r in resampled]))
    ratio, reason = kappa(value, center, ceiling, float(np.hypot(gap_se, null.std(ddof=1))), "less")
    measure = Measure(
        value, null=center, ceiling=ceiling, ci=_within(interval, 0, 90), kappa=ratio, n=num_docs
    )
    measure = measure.because("kappa", reason)
    if ratio is None:
        return measure
    if eval_docs < MIN_DOCUMENTS:
        return measure.because("kappa_ci", f"kappa's {TOO_FEW_DOCUMENTS.format(n=eval_docs)}")
    of_null = ((1 - ratio) / (ceiling - center)) ** 2 * float(null.var(ddof=1)) / len(null)
    place, _ = jackknife_interval(ratio, np.array([r.place[i] for r in resampled]), other_variance=of_null)
    return replace(measure, kappa_ci=place)


def _within(interval: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    return max(low, interval[0]), min(high, interval[1])


def _moments_by_eval_group(layer: AdapterLayer) -> list[Moments]:
    """Moments of the evaluation deltas, by as many groups of documents as there are of the training deltas;
    one where documents are few."""
    codes, num_docs = layer.documents
    groups = GROUPS if num_docs >= MIN_DOCUMENTS else 1
    dealt = np.random.default_rng([layer.settings.seed, 4]).permutation(np.arange(num_docs) % groups)
    return moments_by_group(layer.rows.delta_eval, dealt[codes], groups)


def _without_tenths(
    layer: AdapterLayer, eval_groups: list[Moments], again: Moments, drawn: list[np.ndarray], steps: list[int]
) -> list[_Placed]:
    """All angles without each tenth of the training documents, and without a tenth of the evaluation
    documents where there are enough."""
    k = min(len(layer.delta.mean), steps[-1] + _OVERSAMPLING)
    delta, base, itself = (s.top(k) for s in (layer.delta.spectrum, layer.base.spectrum, again.spectrum))
    enough = len(eval_groups) == len(layer.delta_groups)
    ceilings = (
        [refined_subspace((again - g).covariance, itself) for g in eval_groups]
        if enough
        else [itself] * len(layer.delta_groups)
    )
    return [
        _Placed.of(
            refined_subspace((layer.delta - d).covariance, delta),
            refined_subspace((layer.base - b).covariance, base),
            c,
            drawn,
            steps,
        )
        for d, b, c in zip(layer.delta_groups, layer.base_groups, ceilings, strict=True)
    ]


def decoder_angles(
    context: Context, dictionary: DictionaryLike, second: DictionaryLike | None
) -> dict[str, Measure]:
    """What two dictionaries write most: leading k right singular vectors of the energy-weighted decoders,
    each weighted on its own data.

    Null: decoder rows drawn from N(0, Σ_δ) under the same energies. Ceiling: the second seed of the delta
    dictionary.
    """
    rows, energy = living_rows(dictionary), living_energy(dictionary)
    own, null = (
        context.layer.spectrum_of(dictionary),
        [decoder_spectrum(d, energy) for d in context.layer.drawn(len(rows))],
    )
    twin = None if second is None else context.layer.spectrum_of(second)
    reference = context.reference_spectrum
    measures: dict[str, Measure] = {}
    for k in curve(rows.shape[1]):
        name = f"angle_decoder_k{k}"
        if k > min(own.rank, reference.rank):
            measures[name] = undefined(
                f"the latents that carry energy span fewer than {k} directions", n=len(rows)
            )
            continue
        value, by_chance = (
            angle(own.top(k), reference.top(k)),
            np.array([angle(d.top(k), reference.top(k)) for d in null]),
        )
        ceiling = None if twin is None or k > twin.rank else angle(own.top(k), twin.top(k))
        ratio, reason = kappa(value, float(by_chance.mean()), ceiling, float(by_chance.std(ddof=1)), "less")
        p = draws_p(value, by_chance, "less")
        measure = Measure(value, null=float(by_chance.mean()), ceiling=ceiling, p=p, kappa=ratio, n=len(rows))
        measures[name] = measure.because("kappa", reason).because("ci", REFITS)
    return measures
