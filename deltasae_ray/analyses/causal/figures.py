"""Does a latent do anything? The effect on predictions of taking it from the adapted model, and of giving it
to the base model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.ratios import Ratio, against_draws
from deltasae_ray.metrics.statistics import bootstrap_counts

ABLATED, ADDED = "ablated", "added"
"""The two sides: h_a less the latent in the adapted model, and h_b with it in the base model."""
NONE, DELTA = "none", "delta"
"""Variants of either side that are always there: nothing is changed, and the whole delta is."""


def random_of(name: str, draw: int) -> str:
    """The variant in which a random direction stands in for that of `name`, at the same strength on every
    token."""
    return f"{name} random {draw}"


def causal(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], draws: int, *, bootstrap: int, seed: int
) -> dict[str, dict[str, Measure]]:
    """Nats per token by which the two models come nearer, by name and side.

    ablated: KL(base ‖ adapted) less KL(base ‖ adapted without the latent). added: KL(adapted ‖ base) less
    KL(adapted ‖ base with it). Positive: the latent carries part of what the adapter does to predictions.

    Args:
        rows: one per document, `{positions, ablated: {variant: nats}, added: {variant: nats}}`, KL summed
            over positions.
        draws: random directions per latent.

    Returns:
        Each with the mean of the random directions as null (p by a t test against them; documents are
        resampled), and what the whole delta of the layer does as ceiling.
    """
    counts = bootstrap_counts(len(rows), bootstrap, np.random.default_rng([seed, 19]))
    effects: dict[str, dict[str, Measure]] = {name: {} for name in names}
    for side in (ABLATED, ADDED):
        whole = _nearer(rows, side, DELTA).value
        for name in names:
            null = [_nearer(rows, side, random_of(name, i)) for i in range(draws)]
            effects[name][side] = against_draws(
                _nearer(rows, side, name), null, counts, tail="greater", ceiling=whole
            )
    return effects


def _nearer(rows: Sequence[Mapping[str, Any]], side: str, variant: str) -> Ratio:
    gain = np.array([r[side][NONE] - r[side][variant] for r in rows], dtype=np.float64)
    positions, own = np.array([r["positions"] for r in rows], dtype=np.float64), np.arange(len(rows))
    return Ratio.share(gain, positions, own, len(rows))
