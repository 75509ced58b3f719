"""What may be said about rank and depth: nothing of rank with fewer than two adapter seeds per rank, nothing
of depth with few layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from deltasae_ray.metrics.statistics import equivalence_p, trend_p

MIN_SEEDS = 2
"""Adapters per rank, differing in their training seed, below which a difference between ranks may be one
between seeds."""
ALPHA = 0.05
"""Error rate of every claim."""
POWER = 0.8
"""Share of cases in which the smallest difference that would have been seen is seen."""
MIN_LAYERS = 5
"""Layers below which no order of them is rare enough (4 layers: p = 2/24)."""


@dataclass(frozen=True)
class RankFigure:
    """One metric of one adapter at one layer."""

    rank: int
    adapter_seed: int
    value: float
    layer: int = 0


def rank_statement(metric: str, figures: Sequence[RankFigure], *, margin: float = 0.1) -> str:
    """One sentence: no claim, stable (an equivalence test between every two ranks), rising or falling (a
    permutation test), or undecided.

    Where there are several layers, an adapter counts once: stability is of its mean over layers, a trend is
    one in all layers together.

    Args:
        margin: differences of the metric within ± this count as none.
    """
    adapters, layers, values = _grid(figures)
    ranks = sorted({rank for rank, _ in adapters})
    if len(ranks) < 2:
        return f"{metric}: one rank, nothing to compare."
    thin = [rank for rank in ranks if sum(r == rank for r, _ in adapters) < MIN_SEEDS]
    if thin:
        refusal = (
            f"{metric}: no claim about rank, since ranks {thin} have fewer than {MIN_SEEDS} adapter seeds"
        )
        return f"{refusal}; {second_seed(len(adapters))}."
    if values is None:
        return (
            f"{metric}: no claim about rank, since it is undefined for some adapters at some of the layers"
            f" {layers}."
        )
    by_rank = {
        rank: [float(v.mean()) for (r, _), v in zip(adapters, values, strict=True) if r == rank]
        for rank in ranks
    }
    stable = max(equivalence_p(by_rank[a], by_rank[b], margin) for a, b in combinations(ranks, 2))
    if stable < ALPHA:
        return f"{metric}: stable across ranks within ± {margin:g} (TOST, p = {stable:.2g})."
    trend = _trend([rank for rank, _ in adapters], values)
    if trend:
        return f"{metric}: {trend[0]} with rank (permutation, p = {trend[1]:.2g})."
    return f"{metric}: neither stable within ± {margin:g} nor a trend is shown across ranks {ranks}."


def depth_statement(metric: str, figures: Sequence[RankFigure]) -> str:
    """One sentence: does the metric rise or fall with depth in all adapters together? Empty with fewer than
    MIN_LAYERS layers.

    Layers are what is shuffled, in all adapters alike: adapters of one model share what is particular to a
    layer.
    """
    _, layers, values = _grid(figures)
    if len(layers) < MIN_LAYERS or values is None:
        return ""
    trend = _trend(layers, values.T)
    return (
        f"{metric}: {trend[0]} with depth (permutation, p = {trend[1]:.2g})."
        if trend
        else f"{metric}: no trend with depth is shown."
    )


def second_seed(adapters: int) -> str:
    """What a second training seed of every adapter costs."""
    return f"adapt.seeds=2 trains {adapters} more adapters, and harvests and fits as much again"


def size_statement(
    metric: str, figures: Sequence[RankFigure], *, along: str = "rank", margin: float = 0.1
) -> str:
    """One sentence on whether size matters: the change from the smallest to the largest size with its 95 %
    interval, whether that is equivalent to none (TOST), and the smallest change that would have been seen.

    The change is the slope over log2 of the size times its range. Its standard error is of adapters of one
    size, which differ in their training seed; an adapter counts once, by its mean over layers.

    Args:
        figures: `rank` holds the size, whichever it is.
        along: what the size is, such as "rank" or "d_sae".
        margin: changes within ± this count as none.
    """
    adapters, layers, values = _grid(figures)
    sizes = sorted({size for size, _ in adapters})
    if len(sizes) < 2:
        return f"{metric}: one {along}, nothing to compare."
    if values is None:
        return f"{metric}: no claim about {along}, since it is undefined at some of the layers {layers}."
    means, at = values.mean(1), np.log2([size for size, _ in adapters])
    groups = [means[[size == s for size, _ in adapters]] for s in sizes]
    if min(len(x) for x in groups) < MIN_SEEDS:
        text = f"{metric}: no claim about {along}, since adapters of one seed may differ by it"
        return f"{text}; {second_seed(len(adapters))}."
    return _sized(metric, along, sizes, _change(at, means, groups), margin)


def paired_statement(metric: str, figures: Sequence[RankFigure], *, along: str, margin: float = 0.1) -> str:
    """States whether size matters where every adapter has all sizes, such as those of its dictionaries: its
    own change is taken, and the standard error is of how adapters differ in it.

    Args:
        figures: `rank` holds the size, and `adapter_seed` tells adapters apart.
    """
    cells, layers, values = _grid(figures)
    sizes, adapters = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    if len(sizes) < 2:
        return f"{metric}: one {along}, nothing to compare."
    if values is None or len(cells) < len(sizes) * len(adapters):
        return f"{metric}: no claim about {along}, since it is undefined somewhere at the layers {layers}."
    if len(adapters) < MIN_SEEDS:
        return f"{metric}: no claim about {along} from one adapter; {second_seed(1)}."
    at = np.log2(sizes)
    centred = (at - at.mean()) / np.square(at - at.mean()).sum() * np.ptp(at)
    by_size = {cell: float(v.mean()) for cell, v in zip(cells, values, strict=True)}
    changes = np.array([centred @ np.array([by_size[size, a] for size in sizes]) for a in adapters])
    se = float(changes.std(ddof=1)) / len(adapters) ** 0.5
    return _sized(metric, along, sizes, (float(changes.mean()), se, len(adapters) - 1), margin)


def _sized(
    metric: str, along: str, sizes: Sequence[int], trend: tuple[float, float, int], margin: float
) -> str:
    """The sentence, from a change, its standard error and degrees of freedom."""
    change, se, freedom = trend
    reach = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * se
    text = (
        f"{change:+.3g} [{change - reach:.3g}, {change + reach:.3g}] from {along} {sizes[0]} to {sizes[-1]}"
    )
    p = float(stats.t.sf((margin - abs(change)) / se, freedom)) if se else float(abs(change) >= margin)
    alike = "as good as none" if p < ALPHA else "not shown to be none"
    seen = float(stats.t.ppf(1 - ALPHA / 2, freedom) + stats.t.ppf(POWER, freedom)) * se
    return (
        f"{metric}: {text}, {alike} within ± {margin:g} (TOST, p = {p:.2g}); a change of {seen:.2g} would"
        f" have been seen in {POWER:.0%} of cases."
    )


def _change(at: np.ndarray, means: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Change over the whole range, its standard error by the spread within sizes, and degrees of freedom."""
    freedom = sum(len(x) - 1 for x in groups)
    variance = sum(float(x.var(ddof=1)) * (len(x) - 1) for x in groups) / freedom
    centred, span = at - at.mean(), float(np.ptp(at))
    square = float(centred @ centred)
    return float(centred @ means) / square * span, float(np.sqrt(variance / square)) * span, freedom


def _grid(figures: Sequence[RankFigure]) -> tuple[list[tuple[int, int]], list[int], np.ndarray | None]:
    """Adapters as (rank, seed), layers, and values [adapter, layer]; None where one is missing."""
    known = {((f.rank, f.adapter_seed), f.layer): f.value for f in figures}
    adapters, layers = sorted({a for a, _ in known}), sorted({layer for _, layer in known})
    if len(known) < len(adapters) * len(layers):
        return adapters, layers, None
    return adapters, layers, np.array([[known[a, layer] for layer in layers] for a in adapters])


def _trend(x: Sequence[int], y: np.ndarray) -> tuple[str, float] | None:
    """("rises" or "falls", two-sided p), if there is one."""
    rises, falls = (trend_p(x, sign * y, np.random.default_rng(0)) for sign in (1, -1))
    if min(rises, falls) >= ALPHA / 2:
        return None
    return "rises" if rises < falls else "falls", 2 * min(rises, falls)
