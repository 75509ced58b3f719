"""Loss recovered: which part of what the exact deltas do to the loss an estimate of them does too, from sums
over documents."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.ratios import Counts, Ratio, Sums, bootstrap_p, stretched
from deltasae_ray.metrics.statistics import bootstrap_counts

ZERO, EXACT = "zero", "exact"
"""Variants that are always there: no delta (the base model), and the delta itself."""
MIN_EFFECT = 5.0
"""Standard errors (bootstrap) of its denominator that a ratio must rest on."""
FIGURES = {"loss_recovered": "encoder", "loss_recovered_reference": "monitor"}
"""Figure → the variant whose loss it is made of."""
NULL_DRAWS = 5
"""Dictionaries of featureless atoms behind each null."""


def nulls_of(variant: str) -> list[str]:
    """The variants that are its null: as many atoms, cut alike, as many per token; they know the deltas'
    covariance and nothing else."""
    return [f"{variant}_random_{i}" for i in range(NULL_DRAWS)]


def recovered(rows: Sequence[Mapping[str, Any]], *, bootstrap: int, seed: int) -> dict[str, Measure]:
    """R = (CE_0 - CE_δ̂)/(CE_0 - CE_δ) of every variant, by name of the catalogue.

    Args:
        rows: one per document, `{positions, budgets: {variant: (atoms, per token)}, ce: {variant: nats},
            adapted: {variant: nats}}`, summed over positions.

    Returns:
        The value's interval and p (no better than the null) are by bootstrap of documents, paired; draws of
        the null enter p as variance. Undefined where the exact deltas' own effect is under 5 standard errors.
        `loss_reached` is what the exact deltas at this layer reach of the adapter's whole effect.
    """
    counts = bootstrap_counts(len(rows), bootstrap, np.random.default_rng([seed, 11]))
    measures: dict[str, Measure] = {}
    losses = [r["ce"] for r in rows]
    for name, variant in FIGURES.items():
        null = [Ratio(_sums(losses, n, EXACT), _share) for n in nulls_of(variant)]
        measure = _measure(Ratio(_sums(losses, variant, EXACT), _share), null, counts, "the exact deltas")
        atoms, per_token = rows[0]["budgets"][variant]
        budget = f"{per_token} of {atoms} atoms per token, as its null has"
        measures[name] = measure if measure.value is None else measure.because("note", budget)
    reached = Ratio(_sums([r["adapted"] for r in rows], EXACT, "adapter"), _share)
    return measures | {"loss_reached": _measure(reached, [], counts, "the adapter")}


def _sums(losses: Sequence[Mapping[str, float]], variant: str, target: str) -> Sums:
    """[document, 3]: what the variant, no delta, and the target lose."""
    return np.array([[loss[variant], loss[ZERO], loss[target]] for loss in losses], dtype=np.float64)


def _share(sums: Sums) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (sums[:, 1] - sums[:, 0]) / (sums[:, 1] - sums[:, 2])


def _measure(ratio: Ratio, null: list[Ratio], counts: Counts, whose: str) -> Measure:
    effect = ratio.sums[:, 1] - ratio.sums[:, 2]
    se = float((counts @ effect).std(ddof=1))
    if not abs(effect.sum()) > MIN_EFFECT * se or effect.sum() == 0:
        text = f"{abs(effect.sum()) / se:.1f} standard errors" if se > 0 else "zero"
        return undefined(
            f"the effect of {whose} is {text}, {MIN_EFFECT:g} standard errors are needed to divide by it",
            n=len(effect),
        )
    if not null:
        return ratio.measure(counts, null=0.0, ceiling=1.0)
    values = np.array([n.value for n in null])
    better = stretched(
        ratio.draws(counts) - np.mean([n.draws(counts) for n in null], 0), values, and_one_more=True
    )
    return replace(
        ratio.measure(counts, null=float(values.mean()), ceiling=1.0), p=bootstrap_p(better, "greater")
    )
