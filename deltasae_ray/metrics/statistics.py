"""Intervals, p-values and corrections. Documents are the unit of resampling: tokens of one document are not
independent."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.sparse import csr_array

Tail = Literal["greater", "less", "two-sided"]
"""Which values speak against the null: above it, below it, or both."""

_FEW_COLUMNS = 16
"""Columns up to which sums over documents are counts with weights; a sparse product is faster for more."""

Numbers = Sequence[float] | np.ndarray

MIN_DOCUMENTS = 30
"""Below this number of evaluation documents an interval is undefined."""

FEWEST_FREEDOM = 2.0
"""Degrees of freedom of an interval that one document makes."""

MAX_CEILING_GAP = 0.1
"""Share of the scale by which ceilings may differ for kappas to be compared."""

TOO_FEW_DOCUMENTS = f"interval undefined: {{n}} evaluation documents, {MIN_DOCUMENTS} are needed"
TOO_FEW_TRAINING_DOCUMENTS = f"interval undefined: {{n}} training documents, {MIN_DOCUMENTS} are needed"


def document_codes(doc_ids: Sequence | np.ndarray) -> tuple[Int[np.ndarray, " token"], int]:
    """Every token's document as an integer from 0 up, in order of first appearance, and the number of
    documents."""
    seen: dict = {}
    if isinstance(doc_ids, np.ndarray) and doc_ids.dtype != object:
        _, first, place = np.unique(doc_ids, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[place], len(first)
    codes = np.fromiter((seen.setdefault(d, len(seen)) for d in doc_ids), dtype=np.int64, count=len(doc_ids))
    return codes, len(seen)


def document_sums(
    values: Float[np.ndarray, "token ..."], codes: Int[np.ndarray, " token"], num_docs: int
) -> Float[np.ndarray, "doc ..."]:
    """Sums of the tokens' values over each document, in fp64."""
    if values.ndim == 1:
        return np.bincount(codes, values, num_docs)
    if values.shape[1] <= _FEW_COLUMNS:
        return np.stack([np.bincount(codes, column, num_docs) for column in values.T], 1)
    of_document = csr_array(
        (np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(num_docs, len(codes))
    )
    return of_document @ values.astype(np.float64, copy=False)


def bootstrap_counts(num_docs: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draw doc"]:
    """How often each document is drawn in each resample of all documents."""
    return rng.multinomial(num_docs, np.full(num_docs, 1 / num_docs), size=draws).astype(np.float64)


def percentile_interval(draws: Float[np.ndarray, " draw"], level: float = 0.95) -> tuple[float, float] | None:
    """Central interval of bootstrap draws; None when a draw is undefined (not finite)."""
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def jackknife_interval(
    value: float, deleted: Float[np.ndarray, " group"], level: float = 0.95, *, other_variance: float = 0.0
) -> tuple[tuple[float, float], float]:
    """Interval, by a t quantile, and standard error from the values with one of G groups deleted at a time.

    Args:
        other_variance: of the value, from what no group holds, such as draws of a null.
    """
    g = len(deleted)
    se = float(np.sqrt((g - 1) / g * ((deleted - deleted.mean()) ** 2).sum() + other_variance))
    reach = float(stats.t.ppf((1 + level) / 2, g - 1)) * se
    return (value - reach, value + reach), se


def document_interval(
    value: float, deleted: Float[np.ndarray, " doc"], draws: Float[np.ndarray, " draw"], level: float = 0.95
) -> tuple[float, float] | None:
    """Interval over documents by a t quantile; None where a value is undefined without some document or in
    some draw.

    Percentiles of a bootstrap cover .87 to .92 with 30 documents whose rows resemble each other. The standard
    error is the jackknife's, or that of the draws where they vary by more than documents; its degrees of
    freedom are fewer where few documents make most of it, 2n / (kurtosis - 1) (Satterthwaite 1946).

    Args:
        deleted: values with one document left out at a time.
        draws: of the bootstrap, which may hold null draws besides.
    """
    n = len(deleted)
    if n < 2 or not (np.isfinite(deleted).all() and np.isfinite(draws).all()):
        return None
    square = np.square(deleted - deleted.mean())
    variance = max(float((n - 1) / n * square.sum()), float(draws.var(ddof=1)) * n / (n - 1))
    spread = float(square.sum())
    kurtosis = n * float(np.square(square).sum()) / spread**2 if spread > 0 else 3.0
    freedom = min(n - 1.0, max(FEWEST_FREEDOM, 2 * n / max(kurtosis - 1, 1e-9)))
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return value - reach, value + reach


def permutation_p(
    observed: float, null: Float[np.ndarray, " draw"], tail: Tail, rng: np.random.Generator
) -> float:
    """(1 + #{null as extreme as observed}) / (B + 1); ties are broken at random, so that p is uniform under
    the null."""
    if tail == "two-sided":
        center = float(np.median(null))
        return permutation_p(abs(observed - center), np.abs(null - center), "greater", rng)
    if tail == "less":
        return permutation_p(-observed, -null, "greater", rng)
    ties = int((null == observed).sum())
    return float((1 + (null > observed).sum() + rng.integers(0, ties + 1)) / (len(null) + 1))


def draws_p(
    observed: float, null: Float[np.ndarray, " draw"], tail: Tail, sampling_variance: float = 0.0
) -> float:
    """p from a handful of null draws: a t test of one value against draws of the same kind.

    The variance of (observed - mean of draws) is s²(1 + 1/R), or `sampling_variance` (of that difference,
    over documents) where that is larger: few draws can lie close together by luck.
    """
    r = len(null)
    variance = max(float(null.var(ddof=1)) * (1 + 1 / r), sampling_variance)
    gap = observed - float(null.mean())
    if variance == 0:
        return 1.0 if gap == 0 else float(tail == ("less" if gap > 0 else "greater"))
    t = gap / np.sqrt(variance)
    return float(
        {
            "greater": stats.t.sf(t, r - 1),
            "less": stats.t.cdf(t, r - 1),
            "two-sided": 2 * stats.t.sf(abs(t), r - 1),
        }[tail]
    )


def welch_p(a: Numbers, b: Numbers, tail: Literal["greater", "less"], *, shift: float = 0.0) -> float:
    """Welch's t test of "mean(a) - mean(b) is greater (less) than `shift`", from independent numbers; 1 where
    neither varies."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(len(x), len(y)) < 2:
        return 1.0
    vx, vy = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    gap = float(x.mean() - y.mean()) - shift
    if vx + vy == 0:
        return float(gap <= 0 if tail == "greater" else gap >= 0)
    freedom = (vx + vy) ** 2 / (vx**2 / (len(x) - 1) + vy**2 / (len(y) - 1))
    t = gap / np.sqrt(vx + vy)
    return float(stats.t.sf(t, freedom) if tail == "greater" else stats.t.cdf(t, freedom))


def equivalence_p(a: Numbers, b: Numbers, margin: float) -> float:
    """TOST, two one-sided Welch tests: p of "the means of a and b differ by less than the margin"; 1 with
    fewer than two of either."""
    return max(welch_p(a, b, "greater", shift=-margin), welch_p(a, b, "less", shift=margin))


def trend_p(x: Numbers, y: Numbers, rng: np.random.Generator, *, draws: int = 9999) -> float:
    """Permutation p of "y rises with x", by Kendall's tau; ties broken at random.

    Args:
        y: one value per x, or [x, block]: several that belong to each x, such as the layers of an adapter.
            Blocks are shuffled as one, since what is measured twice of the same thing is not two
            observations.
    """
    level, value = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    values = value.reshape(len(level), -1)
    rising = np.sign(level[:, None] - level)
    agreeing = np.sign(values[:, None] - values).sum(2)  # of every two units, over the blocks
    orders = (rng.permutation(len(level)) for _ in range(draws))
    null = np.array([(rising * agreeing[np.ix_(order, order)]).sum() for order in orders])
    return permutation_p(float((rising * agreeing).sum()), null, "greater", rng)


def comparable(ceilings: Numbers, scale: float = 1.0) -> bool:
    """Whether kappas with these ceilings may be compared: places on ladders of different height are not."""
    return (
        len(ceilings) == 0 or float(np.ptp(np.asarray(ceilings, dtype=np.float64))) <= MAX_CEILING_GAP * scale
    )


def kappa(
    value: float, null: float | None, ceiling: float | None, gap_se: float, better: Literal["greater", "less"]
) -> tuple[float | None, str]:
    """(value - null) / (ceiling - null), or None and why: no ceiling, or one that is not `better` than the
    null by 5 standard errors.

    Args:
        gap_se: standard error of ceiling - null.
    """
    if null is None or ceiling is None:
        return None, ""
    gap = ceiling - null
    if (gap if better == "greater" else -gap) <= 5 * gap_se:
        text = (
            f"the ceiling, {ceiling:.3g}, is not 5 standard errors ({gap_se:.2g} each) better than the null,"
            f" {null:.3g}"
        )
        return None, f"kappa undefined: {text}"
    return (value - null) / gap, ""
