"""Shares of energy, summed over documents, with their bootstrap intervals: every reconstruction figure is one
of these."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.statistics import (
    MIN_DOCUMENTS,
    TOO_FEW_DOCUMENTS,
    Tail,
    document_interval,
    document_sums,
    draws_p,
    percentile_interval,
)

Sums = Float[np.ndarray, "doc column"]
Counts = Float[np.ndarray, "draw doc"]


def row_energy(x: Float[Tensor, "token d_model"]) -> Float[np.ndarray, " token"]:
    """‖x‖² of each row, in fp64; in blocks that stay in the processor's cache."""
    return torch.cat([block.double().square().sum(1) for block in x.split(512)]).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Ratio:
    """A function of sums over documents, such as Σ left / Σ total."""

    sums: Sums
    of: Callable[[Sums], Float[np.ndarray, " draw"]]
    """Rows of summed columns to values; not finite where undefined."""

    @classmethod
    def share(
        cls, left: np.ndarray, total: np.ndarray, document: Int[np.ndarray, " token"], num_docs: int
    ) -> "Ratio":
        """Σ left / Σ total from values per token."""
        return cls(document_sums(np.stack([left, total], 1), document, num_docs), _quotient)

    @property
    def value(self) -> float:
        return float(self.of(self.sums.sum(0, keepdims=True))[0])

    def draws(self, counts: Counts) -> Float[np.ndarray, " draw"]:
        """The value in every resample of the documents."""
        return self.of(counts @ self.sums)

    @property
    def deleted(self) -> Float[np.ndarray, " doc"]:
        """The value without each document."""
        return self.of(self.sums.sum(0, keepdims=True) - self.sums)

    def measure(
        self,
        counts: Counts,
        *,
        null: float | None = None,
        ceiling: float | None = None,
        why: str = "no energy to take a share of",
    ) -> Measure:
        """The value with its interval over documents."""
        n = len(self.sums)
        if not np.isfinite(self.value):
            return undefined(why, null=null, n=n)
        measure = Measure(self.value, null=null, ceiling=ceiling, n=n)
        return with_interval(measure, self.draws(counts), self.deleted)


def _quotient(sums: Sums) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def with_interval(
    measure: Measure, draws: Float[np.ndarray, " draw"], deleted: Float[np.ndarray, " doc"] | None = None
) -> Measure:
    """`measure` with its 95 % interval, or with the reason why there is none; `measure.n` counts documents.

    Args:
        draws: of the bootstrap.
        deleted: values without each document: a t interval, which holds where documents are few and their
            rows alike; without them the percentiles of the draws.
    """
    if measure.n < MIN_DOCUMENTS:
        return measure.because("ci", TOO_FEW_DOCUMENTS.format(n=measure.n))
    if deleted is None or measure.value is None:
        interval = percentile_interval(draws)
    else:
        interval = document_interval(measure.value, deleted, draws)
    return (
        replace(measure, ci=interval)
        if interval
        else measure.because("ci", "interval undefined: it is not defined in every resample of the documents")
    )


def with_kappa_interval(measure: Measure, draws: Float[np.ndarray, " draw"]) -> Measure:
    """`measure` with the interval of its kappa, if it has one, from draws of (value - null)/(ceiling - null)
    in which all three move."""
    if measure.kappa is None or measure.n < MIN_DOCUMENTS:
        return measure
    interval = percentile_interval(draws)
    if interval is None:
        return measure.because("kappa_ci", "interval of kappa undefined: some resample has none")
    return replace(measure, kappa_ci=interval)


def against_draws(
    observed: Ratio, null: list[Ratio], counts: Counts, *, tail: Tail, ceiling: float | None = None
) -> Measure:
    """`observed` with its interval; the null is the mean of a handful of draws, and p a t test against
    them."""
    values = np.array([r.value for r in null])
    measure = observed.measure(counts, ceiling=ceiling)
    if measure.value is None or not np.isfinite(values).all():
        return measure
    gap = observed.draws(counts) - np.mean([r.draws(counts) for r in null], 0)
    sampling = float(gap.var(ddof=1)) if np.isfinite(gap).all() else 0.0
    return replace(measure, null=float(values.mean()), p=draws_p(measure.value, values, tail, sampling))


def difference(low: Ratio, high: list[Ratio], counts: Counts, *, one_of_many: str = "") -> Measure:
    """Mean of `high` less `low`, paired over documents: positive where `low` leaves less. p is that of no
    difference (bootstrap).

    Several of `high` are draws of a null, and what others would have given enters as variance (`stretched`):
    into the interval that of their mean, into p that of one more draw besides, since "no better than the
    null" means that `low` is such a draw itself.

    Args:
        one_of_many: what the only `high` is, where it is one draw of a null (such as a training), whose
            variance nobody knows. There is then no p, and the interval is over documents alone.
    """
    values = np.array([r.value for r in high])
    value, n = float(values.mean()) - low.value, len(low.sums)
    if not np.isfinite(value):
        return undefined("no energy to take a share of", null=0.0, n=n)
    draws = np.mean([r.draws(counts) for r in high], 0) - low.draws(counts)
    deleted = np.mean([r.deleted for r in high], 0) - low.deleted
    if one_of_many:
        text = f"p undefined: {one_of_many} is one of many, and how others differ is not known"
        return with_interval(Measure(value, null=0.0, n=n), draws, deleted).because("p", text)
    p = bootstrap_p(stretched(draws, values, and_one_more=True), "greater")
    return with_interval(Measure(value, null=0.0, p=p, n=n), stretched(draws, values), deleted)


def stretched(
    draws: Float[np.ndarray, " draw"], null: Float[np.ndarray, " null_draw"], *, and_one_more: bool = False
) -> Float[np.ndarray, " draw"]:
    """Resamples of documents as wide as if the null were drawn anew each time: stretched about their mean by
    √(1 + t²s²/(R z² v)), with v their variance over documents, s² that of R draws, t and z quantiles.

    Args:
        and_one_more: also by the variance of a single draw, which is what is held against their mean.
    """
    over_documents = float(draws.var(ddof=1))
    if len(null) < 2 or not over_documents > 0:
        return draws
    reach = float(stats.t.ppf(0.975, len(null) - 1) / stats.norm.ppf(0.975))
    of_null = reach**2 * float(null.var(ddof=1)) * (1 / len(null) + and_one_more)
    return draws.mean() + (draws - draws.mean()) * np.sqrt(1 + of_null / over_documents)


def bootstrap_p(draws: Float[np.ndarray, " draw"], tail: Tail) -> float | None:
    """p of "no difference from 0" from resamples of a difference; None where it is undefined in one of
    them."""
    if not np.isfinite(draws).all():
        return None
    low, high = ((1 + int(beyond.sum())) / (len(draws) + 1) for beyond in (draws <= 0, draws >= 0))
    return float({"greater": low, "less": high, "two-sided": min(1.0, 2 * min(low, high))}[tail])
