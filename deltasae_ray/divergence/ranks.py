"""What may be said about rank: nothing, with fewer than two adapter seeds per rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from deltasae_ray.divergence.statistics import equivalence_p, trend_p

MIN_SEEDS = 2
"""Adapters per rank, differing in their training seed, below which a difference between ranks may be one between seeds."""


@dataclass(frozen=True)
class RankFigure:
    """One metric of one adapter."""

    rank: int
    adapter_seed: int
    value: float


def rank_statement(metric: str, figures: Sequence[RankFigure], *, margin: float = 0.1, alpha: float = 0.05, seed: int = 0) -> str:
    """One sentence: no claim, stable (an equivalence test between every two ranks), rising or falling (a permutation test), or undecided.

    Args:
        margin: differences of the metric within ± this count as none.
    """
    by_rank = {rank: [f.value for f in figures if f.rank == rank] for rank in sorted({f.rank for f in figures})}
    if len(by_rank) < 2:
        return f"{metric}: one rank, nothing to compare."
    thin = [rank for rank in by_rank if len({f.adapter_seed for f in figures if f.rank == rank}) < MIN_SEEDS]
    if thin:
        return f"{metric}: no claim about rank, since ranks {thin} have fewer than {MIN_SEEDS} adapter seeds."
    ranks = list(by_rank)
    stable = max(equivalence_p(by_rank[a], by_rank[b], margin) for a, b in combinations(ranks, 2))
    if stable < alpha:
        return f"{metric}: stable across ranks within ± {margin:g} (TOST, p = {stable:.3f})."
    x, y = [f.rank for f in figures], [f.value for f in figures]
    rises, falls = (trend_p(x, sign * np.array(y), np.random.default_rng(seed)) for sign in (1, -1))
    if min(rises, falls) < alpha / 2:
        return f"{metric}: {'rises' if rises < falls else 'falls'} with rank (permutation, p = {2 * min(rises, falls):.3f})."
    return f"{metric}: neither stable within ± {margin:g} nor a trend is shown across ranks {ranks}."
