"""Figures over all seeds of a dictionary. A leaf is one training, and its interval knows nothing of what
another seed would have given.

For seeds 1..S of one cell (adapter, layer, d_sae, k, architecture), with values v_s, and for the reach down
(up is alike)

    v̄ ∓ sqrt(r² + t²(ν) · s² / S)

- r is the mean over seeds of v_s less the lower end of its interval over documents. The seeds' resamples are
  of the same documents and move the seeds together (by .998 and more on planted deltas), so this is the reach
  of the mean; where they do not, it is too long, never too short.
- s² is the larger of the cell's own variance between seeds and of its mean over all cells of the metric and
  shape; ν = Σ(S - 1) over those cells. Two seeds alone would ask for t(1) = 12.7 and still be wrong where
  they lie close together by luck; the mean alone would be too small for the cell whose seeds scatter most. A
  normal quantile, as a bootstrap of two seeds has it, covers 91 % where the mean moves as much by seeds as by
  documents, and 79 % where three times as much.
- Squares of reaches are added, each with its own quantile (MOVER, Zou & Donner 2008), which keeps asymmetric
  intervals so.

Over 2, 3 and 5 seeds in 1 or 6 cells, seeds' spread 0 to 3 times the documents', alike or (log-sd .5) unlike
between cells, this covers 94.7 to 98.6 %. Where the figure is resampled over latents, r is 0: latents are
what a seed draws, and would be counted twice. Documents of training stay as they are: every seed saw the
same.

κ needs what its ceiling was made of. Every seed's ceiling is the next seed's dictionary, in a ring, so that
no seed is the ceiling twice. M's κ is V(G)/V(the next seed's), a figure of that one dictionary: seeds' κ are
as independent as their values, and have an interval of the same kind. A ceiling of matching, of angles or of
co-activation is a figure of both dictionaries, so neighbours in the ring share one, and two seeds have one
pair seen from either side: their scatter says too little (of two seeds, nothing) of how κ varies, and there
is no interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from deltasae_ray.metrics.catalogue import metric, parse_name, scale
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.statistics import comparable

OVER_DOCUMENTS = (
    "missing_share",
    "missing_share_base_control",
    "missing_share_over_base",
    "structure_delta",
    # fmt: skip
    "fvu_delta",
    "gain_over_pca",
    "gain_over_random_atoms",
    "fvu_encoder",
    "density",
    "coactivation",
)
"""Figures that a delta dictionary enters, resampled over documents."""
OVER_LATENTS = ("max_cosine", "max_cosine_weighted", "novel_share", "alive_share", "angle_decoder_k{k}",
    "paper_angle_k{k}",
                "paper_max_cosine", "paper_median_cosine", "paper_novel_share")  # fmt: skip
"""Figures of a decoder alone, resampled over latents or not at all. Not the share that repeats: with two
seeds, its two values are one pair of dictionaries seen from either side, and hold nothing of how pairs
differ."""
SHARED_CEILINGS = (
    "interval of kappa undefined: a ceiling is of two seeds' dictionaries, so that seeds share theirs"
)
_SIGNED = (-1.0, 1.0)
_LIMITS = {
    "cosine": _SIGNED,
    "correlation": _SIGNED,
    "degrees": (0.0, 90.0),
    "latents": (0.0, float("inf")),
    "atoms": (1.0, float("inf")),
}


@dataclass(frozen=True)
class Cell:
    """One metric of one cell, in every seed."""

    place: tuple
    """Which adapter and layer."""
    by_seed: dict[int, Measure]


def pooled(name: str) -> bool:
    """Whether a metric, by its name in the tables, has a figure over seeds."""
    return not parse_name(name).over_seeds and metric(name).name in (*OVER_DOCUMENTS, *OVER_LATENTS)


def over_seeds(name: str, cells: Sequence[Cell]) -> dict[tuple, Measure]:
    """Place → the figure over seeds of one metric, from all cells of the study that have the metric in two
    seeds or more.

    Undefined where it is in any seed: the seeds for which it is defined would be a choice by outcome. κ is
    the mean of the seeds', whose ceiling is each the next seed's dictionary; it is undefined where these
    ceilings differ by more than .1. p is the largest of the seeds'.
    """
    whole = [c for c in cells if len(c.by_seed) > 1]
    values = _Scatter.of([_defined(c, "value") for c in whole])
    places = _Scatter.of([_defined(c, "kappa") for c in whole])
    return {c.place: _over_seeds(name, c.by_seed, values, places) for c in whole}


@dataclass(frozen=True)
class _Scatter:
    """What all cells know of the variance between seeds."""

    variance: float
    freedom: int

    @classmethod
    def of(cls, cells: Sequence[list[float]]) -> "_Scatter":
        groups = [np.array(values) for values in cells if len(values) > 1]
        freedom = sum(len(v) - 1 for v in groups)
        return cls(sum(float(v.var(ddof=1)) * (len(v) - 1) for v in groups) / max(1, freedom), freedom)

    def interval(
        self, values: np.ndarray, within: Sequence[tuple[float, float]] | None
    ) -> tuple[float, float]:
        """The interval of the mean; `within` are the seeds' intervals over documents, if these enter."""
        variance = max(self.variance, float(values.var(ddof=1)))
        between = float(stats.t.ppf(0.975, self.freedom)) ** 2 * variance / len(values)
        reach = np.zeros(2) if within is None else np.abs(np.array(within) - values[:, None]).mean(0)
        low, high = np.sqrt(reach**2 + between)
        return float(values.mean() - low), float(values.mean() + high)


def _defined(cell: Cell, part: str) -> list[float]:
    values = [getattr(m, part) for m in cell.by_seed.values()]
    return values if None not in values else []


def _over_seeds(name: str, by_seed: dict[int, Measure], values: _Scatter, places: _Scatter) -> Measure:
    measures = list(by_seed.values())
    lacking = {seed: m.reason for seed, m in by_seed.items() if m.value is None}
    if lacking:
        text = "; ".join(f"seed {seed}: {reason}" for seed, reason in lacking.items())
        return undefined(
            text if len(lacking) < len(by_seed) else next(iter(lacking.values())),
            null=measures[0].null,
            n=measures[0].n,
        )
    ps = [m.p for m in measures if m.p is not None]
    mean = Measure(
        _mean(measures, "value"),
        null=_mean(measures, "null"),
        ceiling=_mean(measures, "ceiling"),
        p=max(ps) if len(ps) == len(measures) else None,
        n=measures[0].n,
    )
    return _placed(name, _with_interval(name, mean, measures, values), measures, places)


def _with_interval(name: str, mean: Measure, measures: list[Measure], scatter: _Scatter) -> Measure:
    values = np.array([m.value for m in measures], dtype=np.float64)
    if metric(name).name in OVER_LATENTS:
        low, high = scatter.interval(values, None)
        if high <= low:
            return mean.because("ci", "interval undefined: all seeds agree exactly")
        return mean.within(*_limited(name, (low, high)))
    within = [m.ci for m in measures if m.ci is not None]
    if len(within) < len(measures):
        bare = next(m for m in measures if m.ci is None)
        return (
            replace(mean, reasons=bare.reasons)
            if bare.reasons
            else mean.because("ci", "interval undefined: a seed has none")
        )
    return mean.within(*_limited(name, scatter.interval(values, within)))


def _placed(name: str, mean: Measure, measures: list[Measure], scatter: _Scatter) -> Measure:
    """With κ and its interval, where every seed has them."""
    places = [m.kappa for m in measures if m.kappa is not None]
    if len(places) < len(measures):
        return mean
    if not comparable([m.ceiling for m in measures if m.ceiling is not None], scale(name)):
        return mean.because("kappa", "kappa undefined: the seeds' ceilings differ by more than .1")
    values, within = np.array(places), [m.kappa_ci for m in measures if m.kappa_ci is not None]
    placed = replace(mean, kappa=float(values.mean()))
    if metric(name).name != "missing_share":
        return placed.because("kappa_ci", SHARED_CEILINGS)
    if len(within) < len(measures):
        return placed.because("kappa_ci", "interval of kappa undefined: a seed has none")
    return replace(placed, kappa_ci=scatter.interval(values, within))


def _limited(name: str, interval: tuple[float, float]) -> tuple[float, float]:
    """What the figure can be at all: a t quantile of few seeds reaches far."""
    entry = metric(name)
    low, high = _LIMITS.get(
        entry.unit, (0.0, 1.0) if entry.name in OVER_LATENTS else (-float("inf"), float("inf"))
    )
    return max(low, interval[0]), min(high, interval[1])


def _mean(measures: Sequence[Measure], part: str) -> float | None:
    values = [getattr(m, part) for m in measures]
    return float(np.mean(values)) if None not in values else None
