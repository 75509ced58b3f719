"""What may be said about rank and depth: nothing of rank with fewer than two adapter seeds per rank, nothing
of depth with few layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from deltasae_ray.metrics.statistics import equivalence_p, trend_p

MIN_SEEDS = 2
"""Adapters per rank, differing in their training seed, below which a difference between ranks may be one
between seeds."""
MIN_LAYERS = 5
"""Layers below which no order of them is rare enough (4 layers: p = 2/24)."""


@dataclass(frozen=True)
class RankFigure:
    """One metric of one adapter at one layer."""

    rank: int
    adapter_seed: int
    value: float
    layer: int = 0


def rank_statement(
    metric: str, figures: Sequence[RankFigure], *, margin: float = 0.1, alpha: float = 0.05, seed: int = 0
) -> str:
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
        return f"{metric}: no claim about rank, since ranks {thin} have fewer than {MIN_SEEDS} adapter seeds."
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
    if stable < alpha:
        return f"{metric}: stable across ranks within ± {margin:g} (TOST, p = {stable:.2g})."
    told = _trend([rank for rank, _ in adapters], values, alpha, seed)
    if told:
        return f"{metric}: {told[0]} with rank (permutation, p = {told[1]:.2g})."
    return f"{metric}: neither stable within ± {margin:g} nor a trend is shown across ranks {ranks}."


def depth_statement(metric: str, figures: Sequence[RankFigure], *, alpha: float = 0.05, seed: int = 0) -> str:
    """One sentence: does the metric rise or fall with depth in all adapters together? Empty with fewer than
    MIN_LAYERS layers.

    Layers are what is shuffled, in all adapters alike: adapters of one model share what is particular to a
    layer.
    """
    _, layers, values = _grid(figures)
    if len(layers) < MIN_LAYERS or values is None:
        return ""
    told = _trend(layers, values.T, alpha, seed)
    return (
        f"{metric}: {told[0]} with depth (permutation, p = {told[1]:.2g})."
        if told
        else f"{metric}: no trend with depth is shown."
    )


def _grid(figures: Sequence[RankFigure]) -> tuple[list[tuple[int, int]], list[int], np.ndarray | None]:
    """Adapters as (rank, seed), layers, and values [adapter, layer]; None where one is missing."""
    known = {((f.rank, f.adapter_seed), f.layer): f.value for f in figures}
    adapters, layers = sorted({a for a, _ in known}), sorted({layer for _, layer in known})
    if len(known) < len(adapters) * len(layers):
        return adapters, layers, None
    return adapters, layers, np.array([[known[a, layer] for layer in layers] for a in adapters])


def _trend(x: Sequence[int], y: np.ndarray, alpha: float, seed: int) -> tuple[str, float] | None:
    """("rises" or "falls", two-sided p), if there is one."""
    rises, falls = (trend_p(x, sign * y, np.random.default_rng(seed)) for sign in (1, -1))
    if min(rises, falls) >= alpha / 2:
        return None
    return "rises" if rises < falls else "falls", 2 * min(rises, falls)
