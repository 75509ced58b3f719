"""Which pairs of adapters are compared, and the ceiling of their figures: how alike two trainings of one rank
are that differ in nothing but their seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import comb
from typing import Literal

import numpy as np
from scipy import stats

from deltasae_ray.analyses.divergence.pair_task import PairSpec, adapter_pairs
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import kappa

BETTER: dict[str, Literal["greater", "less"]] = {
    "cka_adapters": "greater",
    "max_cosine_adapters": "greater",
    "missing_share_adapters": "less",
}
"""Figure between adapters → the side on which two that are alike lie."""

Figures = Mapping[str, Measure]


def are_twins(pair: PairSpec) -> bool:
    """Whether both were trained here with one rank and different seeds; of adapters that were given no seed
    is known."""
    one, other = pair.one, pair.other
    known = one.rank is not None and one.adapter_seed is not None and other.adapter_seed is not None
    return known and one.rank == other.rank and one.adapter_seed != other.adapter_seed


def compared_pairs(leaves: Sequence[LeafSpec], most: int) -> list[PairSpec]:
    """Every pair of adapters; where they have more than `most`, only twins: the cost of all grows with the
    square of the adapters."""
    pairs = adapter_pairs(leaves)
    few = comb(len({leaf.adapter for leaf in leaves}), 2) <= most
    return pairs if few else [pair for pair in pairs if are_twins(pair)]


def describe_pairs(adapters: int, most: int) -> str:
    """What a plan says of pairs that are left out; empty where all are compared."""
    if (pairs := comb(adapters, 2)) <= most:
        return ""
    return (
        f"{pairs:,} are more than diverge.pairs={most:,}: only trainings that differ in nothing but their"
        " seed are compared with each other"
    )


def with_ceilings(measured: Mapping[PairSpec, Figures]) -> dict[PairSpec, dict[str, Measure]]:
    """Gives pairs of different ranks a ceiling: the mean over the twins of either rank, at their layer and
    shape.

    Where there are no twins a figure keeps the ceiling that it has, such as a second seed of the dictionary.
    """
    return {
        pair: {name: _judged(pair, name, m, measured) for name, m in figures.items()}
        for pair, figures in measured.items()
    }


def _judged(pair: PairSpec, name: str, m: Measure, measured: Mapping[PairSpec, Figures]) -> Measure:
    if name not in BETTER or m.value is None:
        return m
    if are_twins(pair):
        return m.because(
            "note", f"two training seeds of rank {pair.one.rank}: the ceiling of pairs of different ranks"
        )
    ranks = {pair.one.rank, pair.other.rank}
    twins = {
        p: figures[name]
        for p, figures in measured.items()
        if are_twins(p) and p.place == pair.place and p.one.rank in ranks
    }
    defined = {p: t for p, t in twins.items() if t.value is not None}
    if not defined:
        return m
    ceiling = float(np.mean([t.value for t in defined.values() if t.value is not None]))
    # The twins are of the same documents: their errors are no more independent than the mean of them says.
    spread = [(t.ci[1] - t.ci[0]) / (2 * float(stats.norm.ppf(0.975))) for t in defined.values() if t.ci]
    place, reason = (
        kappa(m.value, m.null, ceiling, float(np.mean(spread)), BETTER[name])
        if len(spread) == len(defined)
        else (None, "kappa undefined: the ceiling has no interval")
    )
    names = ", ".join(f"{p.one.adapter} and {p.other.adapter}" for p in defined)
    # what was said of the ceiling that it had, and of kappa under that, is no longer so
    reasons = tuple((part, why) for part, why in m.reasons if part not in ("ceiling", "kappa", "kappa_ci"))
    judged = replace(m, ceiling=ceiling, kappa=place, kappa_ci=None, reasons=reasons)
    judged = judged.because("ceiling", f"the ceiling is that of two training seeds of one rank ({names})")
    if reason:
        return judged.because("kappa", reason)
    return judged.because(
        "kappa_ci", "interval of kappa undefined: value and ceiling are of different pairs, resampled apart"
    )
