"""Does a monitor still work on the adapted model? Figures from its scores before and after, paired over
documents (pure)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.ratios import with_interval
from deltasae_ray.metrics.statistics import bootstrap_counts

ALARMS = 0.01
"""Share of negatives on which an alarm is tolerated."""
FEWEST_NEGATIVES = 100
"""Documents without what is looked for, below which one false alarm in a hundred cannot be told."""
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Scored:
    """A monitor's scores of labelled documents, all sources in the same order."""

    label: Bool[np.ndarray, " score"]
    document: Int[np.ndarray, " score"]
    """From 0 up; a reading of each token has several scores in a document."""
    before: Float[np.ndarray, " score"]
    """On base activations."""
    after: Float[np.ndarray, " score"]
    """On adapted activations."""
    repaired: Float[np.ndarray, " score"]
    """The repaired monitor on adapted activations."""
    random: Float[np.ndarray, " score"] | None = None
    """On those of the random adapter, where the study has one."""

    @property
    def documents(self) -> int:
        return int(self.document.max()) + 1


Statistic = Callable[[Scored, Float[np.ndarray, "draw score"]], Float[np.ndarray, " draw"]]
"""A figure under weights of the scores, one value for each row of weights; NaN where undefined."""


def auroc(
    scores: Float[np.ndarray, " score"],
    label: Bool[np.ndarray, " score"],
    weights: Float[np.ndarray, "draw score"],
) -> Float[np.ndarray, " draw"]:
    """Probability that a positive scores above a negative, ties counting half, under each row of weights."""
    order = np.argsort(scores, kind="stable")
    ranked, positive, w = scores[order], label[order], weights[:, order]
    negatives = np.concatenate([np.zeros((len(w), 1)), np.cumsum(w * ~positive, 1)], 1)
    low, high = (np.searchsorted(ranked, ranked[positive], side=side) for side in ("left", "right"))
    wins = (w[:, positive] * (negatives[:, low] + negatives[:, high]) / 2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return wins / (w[:, positive].sum(1) * negatives[:, -1])


def delong_p(
    before: Float[np.ndarray, " doc"], after: Float[np.ndarray, " doc"], label: Bool[np.ndarray, " doc"]
) -> float:
    """One-sided p of "AUROC did not fall", paired (DeLong, DeLong and Clarke-Pearson 1988)."""
    gaps = [_placements(before, label)[i] - _placements(after, label)[i] for i in (0, 1)]
    drop = float(gaps[0].mean())
    variance = sum(float(gap.var(ddof=1)) / len(gap) for gap in gaps if len(gap) > 1)
    if variance == 0:
        return 1.0 if drop <= 0 else 0.0
    return float(stats.norm.sf(drop / np.sqrt(variance)))


def _placements(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places each score among the other label's: of every positive the share of negatives below it, and of
    every negative that of positives above it."""
    positives, negatives = np.sort(scores[label]), np.sort(scores[~label])
    below, above = (
        (np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")) / (2 * len(b))
        for a, b in ((scores[label], negatives), (scores[~label], positives))
    )
    return below, 1 - above


def labelled(scored: Scored, ceiling: float | None, *, bootstrap: int, seed: int) -> dict[str, Measure]:
    """Figures that need labels, by the last part of their names.

    Args:
        ceiling: AUROC of a probe trained anew on adapted activations; None where it could not be trained.
    """
    n = scored.documents
    counts = bootstrap_counts(n, bootstrap, np.random.default_rng([seed, 23]))
    draws = counts[:, scored.document]

    def measured(statistic: Statistic, null: float | None = None, ceiling: float | None = None) -> Measure:
        value = float(statistic(scored, np.ones((1, len(scored.label))))[0])
        if not np.isfinite(value):
            return undefined("not defined with these texts", n=n)
        return with_interval(Measure(value, null=null, ceiling=ceiling, n=n), statistic(scored, draws))

    drop = measured(_drop("after"))
    drop = replace(drop, null=_null(scored), p=_p(scored, draws))
    figures = {
        "auroc": measured(lambda s, w: auroc(s.after, s.label, w), null=0.5, ceiling=ceiling),
        "auroc_drop": drop if scored.random is not None else drop.because("null", _NO_RANDOM),
        "repaired_drop": replace(measured(_drop("repaired")), null=drop.value),
        "recovered": _recovered(measured, drop, n),
    }
    return figures | _operating(scored, draws[:_FEW_DRAWS], n)


_NO_RANDOM = "the study has no random adapter (diverge.controls=random_lora)"
_FEW_DRAWS = 400
"""Resamples of what needs a quantile in each."""


def _drop(which: str) -> Statistic:
    return lambda s, w: auroc(s.before, s.label, w) - auroc(getattr(s, which), s.label, w)


def _null(scored: Scored) -> float | None:
    if scored.random is None:
        return None
    ones = np.ones((1, len(scored.label)))
    return float((auroc(scored.before, scored.label, ones) - auroc(scored.random, scored.label, ones))[0])


def _p(scored: Scored, draws: np.ndarray) -> float | None:
    """By DeLong where a document has one score, else from resamples of documents."""
    if len(scored.label) == scored.documents:
        return delong_p(scored.before, scored.after, scored.label)
    drop = _drop("after")(scored, draws)
    return float((1 + (drop <= 0).sum()) / (len(drop) + 1)) if np.isfinite(drop).all() else None


def _recovered(measured: Callable[..., Measure], drop: Measure, n: int) -> Measure:
    """Share of the lost AUROC that repair returns; defined where some was lost beyond chance."""
    if drop.ci is None or drop.ci[0] <= 0:
        return undefined("no AUROC is shown to be lost, so that there is nothing to recover", n=n)

    def share(s: Scored, w: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - _drop("repaired")(s, w) / _drop("after")(s, w)

    return measured(share, null=0.0, ceiling=1.0)


def _operating(scored: Scored, draws: np.ndarray, n: int) -> dict[str, Measure]:
    """True positives at one false alarm in a hundred, and how far the threshold for that moves."""
    negatives = len(np.unique(scored.document[~scored.label]))
    if negatives < FEWEST_NEGATIVES:
        why = f"{negatives} texts of label 0: {FEWEST_NEGATIVES} are needed for one false alarm in a hundred"
        return {"tpr_drop": undefined(why, n=n), "threshold_drift": undefined(why, n=n)}

    def both(weights: np.ndarray) -> tuple[float, float]:
        (t_before, tpr_before), (t_after, tpr_after) = (
            _at_alarms(scores, scored.label, weights) for scores in (scored.before, scored.after)
        )
        spread = float(scored.before.std())
        return tpr_before - tpr_after, (t_after - t_before) / spread if spread else float("nan")

    values = both(np.ones(len(scored.label)))
    over = np.array([both(w) for w in draws])
    return {
        name: with_interval(Measure(value, null=0.0, n=n), column)
        if np.isfinite(value)
        else undefined("the scores do not vary", n=n)
        for name, value, column in zip(("tpr_drop", "threshold_drift"), values, over.T, strict=True)
    }


def _at_alarms(scores: np.ndarray, label: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Threshold above which 1 % of negatives lie at most, and the share of positives above it."""
    order = np.argsort(scores[~label])
    ranked, below = scores[~label][order], np.cumsum(weights[~label][order])
    at = int(np.searchsorted(below, (1 - ALARMS) * below[-1] - 1e-9))
    threshold = float(ranked[min(at, len(ranked) - 1)])
    positives = weights[label]
    return threshold, float(positives[scores[label] > threshold].sum() / max(positives.sum(), 1e-12))


def retrained_auroc(
    vectors: Float[np.ndarray, "doc d_model"], label: Bool[np.ndarray, " doc"]
) -> float | None:
    """AUROC of a logistic regression trained on these vectors, each document scored by a fold that did not
    see it; None with fewer than five documents of a label."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(label.sum(), (~label).sum()) < _FOLDS:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(model, vectors, label, cv=folds, method="decision_function")
    return float(auroc(np.asarray(scores), label, np.ones((1, len(label))))[0])


def unlabelled(
    before: Float[np.ndarray, " score"],
    after: Mapping[str, Float[np.ndarray, " score"]],
    document: Int[np.ndarray, " score"],
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Measure]:
    """What can be told without labels: the mean shift of the scores, and its root mean square, in standard
    deviations of the base's scores.

    Args:
        after: scores of the adapter ("adapter"), and of the random one ("random") where there is one.
    """
    n = int(document.max()) + 1 if len(document) else 0
    counts = bootstrap_counts(n, bootstrap, np.random.default_rng([seed, 29])) if n else np.ones((1, 0))
    figures = {}
    for name, of in (("shift", _mean_shift), ("staleness", _rms_shift)):
        value, draws = (of(_sums(before, after["adapter"], document, c)) for c in (np.ones((1, n)), counts))
        if not np.isfinite(value).all():
            figures[name] = undefined("the scores of the base model do not vary", n=n)
            continue
        null = None
        if "random" in after:
            null = float(of(_sums(before, after["random"], document, np.ones((1, n))))[0])
        measure = with_interval(Measure(float(value[0]), null=null, n=n), draws)
        figures[name] = measure if null is not None else measure.because("null", _NO_RANDOM)
    return figures


def _sums(before: np.ndarray, after: np.ndarray, document: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted sums over documents: number, s, s², change, change²."""
    change = after - before
    columns = (np.ones_like(before), before, before**2, change, change**2)
    return counts @ np.stack([np.bincount(document, c, counts.shape[1]) for c in columns], 1)


def _spread(sums: np.ndarray) -> np.ndarray:
    n, total, squares = sums[:, 0], sums[:, 1], sums[:, 2]
    variance = squares / n - (total / n) ** 2
    return np.sqrt(np.where(variance > 1e-12 * np.maximum(squares / n, 1e-30), variance, np.nan))


def _mean_shift(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 3] / sums[:, 0] / _spread(sums)


def _rms_shift(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(sums[:, 4] / sums[:, 0]) / _spread(sums)
