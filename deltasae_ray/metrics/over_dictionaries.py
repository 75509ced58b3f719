"""Intervals that hold what another base dictionary, and another seed of the delta one, would have given.

A figure v[b, s] against base dictionary b by delta dictionary s knows three sources of chance: which base
dictionary was fitted, which delta dictionary, and which documents were read. Documents are the same in all
cells and move them together, so that the reach of the mean over documents is the mean of the cells' reaches
(where they do not, it is too long, never too short). Dictionaries and seeds are few, and resampling three of
them says too little of how they vary: (B - 1)/B of the variance, and a normal quantile where t with 2 degrees
of freedom is 4.3. So either has a t interval, and squares of reaches are added (MOVER, Zou & Donner 2008), as
in `over_seeds`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from deltasae_ray.metrics.measure import Measure, undefined

FEWEST = 2
"""Base dictionaries, or seeds, below which nothing is known of how they vary."""

Cells = Sequence[Sequence[Measure]]
"""Measures by base dictionary, then by seed of the delta dictionary; as many seeds of each."""


def over_dictionaries(cells: Cells) -> Measure:
    """The mean figure over base dictionaries and seeds, with an interval for other dictionaries, seeds and
    documents.

    Returns:
        `n` is the number of base dictionaries. Undefined where one cell is; without an interval where a cell
        has none or there is one dictionary; with one seed the interval says that seeds are not in it.
    """
    return _over(cells, one_more=False)


def beyond_others(differences: Cells) -> Measure:
    """The figure of the reference less its mean over other base dictionaries; 0 where it is one of them.

    One more dictionary differs from the mean of B others by s √(1 + 1/B), s their own spread: with three
    others only a difference of five such spreads is told from chance.

    Args:
        differences: the reference's figure less that of each other base dictionary, paired over documents
            (`over_control`), by seed of the delta dictionary.
    """
    return _over(differences, one_more=True)


def _over(cells: Cells, *, one_more: bool) -> Measure:
    null, many, seeds = (0.0 if one_more else cells[0][0].null), len(cells), len(cells[0])
    lacking = [m.reason for row in cells for m in row if m.value is None]
    if lacking:
        return undefined(lacking[0], null=null, n=many)
    values = np.array([[m.value for m in row] for row in cells], dtype=np.float64)
    mean = Measure(float(values.mean()), null=null, n=many)
    bare = [m.why("ci") for row in cells for m in row if m.ci is None]
    if bare:
        return mean.because("ci", bare[0] or "interval undefined: a cell has none")
    if many < FEWEST:
        return mean.because("ci", "interval undefined: one base dictionary, and how others differ is unknown")
    ends = np.array([[m.ci for m in row] for row in cells], dtype=np.float64)
    documents = np.abs(ends - values[..., None]).mean((0, 1))
    squares = _t_reach(values.mean(1), 1 / many + one_more) ** 2
    squares += _t_reach(values.mean(0), 1 / seeds) ** 2 if seeds >= FEWEST else 0.0
    low, high = np.sqrt(documents**2 + squares)
    over = mean.within(float(values.mean() - low), float(values.mean() + high))
    if seeds >= FEWEST:
        return over
    return over.because("note", "one seed of the delta dictionary: how others differ is not in the interval")


def _t_reach(values: np.ndarray, times: float) -> float:
    """Reach of a t interval by the spread of few values, whose variance is taken so many times."""
    return float(stats.t.ppf(0.975, len(values) - 1) * np.sqrt(values.var(ddof=1) * times))
