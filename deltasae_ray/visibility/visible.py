"""Can the dictionary made for the base model see a change? Decided latent by latent, without a model and
without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from deltasae_ray.divergence.arrays import Matrix
from deltasae_ray.divergence.inputs import DictionaryLike, living_rows
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import Moments
from deltasae_ray.divergence.shares import REPEATS
from deltasae_ray.visibility.decision import (
    FEWEST,
    Judged,
    Label,
    LatentLabel,
    features_held,
    judge,
    label_of,
    share_interval,
)
from deltasae_ray.visibility.expression import ALONG_MEAN, Metric, Scale
from deltasae_ray.visibility.latents import MIN_FIRINGS, MIN_STRONG, Active, repeating
from deltasae_ray.visibility.presence import scale_of
from deltasae_ray.visibility.rows import PerRow, Rows, check_dictionaries
from deltasae_ray.visibility.scaling import Scaling, classes, tie
from deltasae_ray.visibility.structured import Texts
from deltasae_ray.visibility.together import firing_apart


@dataclass(frozen=True)
class LatentVisibility:
    """What is known of one latent of the delta dictionary."""

    index: int
    """Position in the dictionary."""
    label: LatentLabel
    p: float | None
    """Probability that a latent of a base dictionary is expressed as badly; None where it was not judged."""
    q: float | None
    """p corrected over the judged latents (Benjamini and Hochberg)."""
    scaling: Scaling | None
    """What it does to the base activations; None where that cannot be told."""
    firings: int
    """On training and evaluation rows together."""


@dataclass(frozen=True)
class Visibility:
    """Whether the reference can see a change, with the latents that decide it."""

    label: Label
    share: Measure
    """f, the share of judged latents that are not visible."""
    features: tuple[float, float]
    """Share of the change's features that the reference holds, as an interval, read through planted
    mixtures."""
    latents: tuple[LatentVisibility, ...]
    """Every repeating latent, in the dictionary's order."""
    reasons: tuple[str, ...]
    """What limits the answer, in words."""

    @property
    def named(self) -> tuple[LatentVisibility, ...]:
        """The latents that are not visible, whatever the label."""
        return tuple(x for x in self.latents if x.label == "not visible")


def visibility(
    deltas: Matrix,
    base: Matrix,
    dictionary: DictionaryLike,
    reference: DictionaryLike,
    *,
    base_dictionaries: Sequence[DictionaryLike],
    second: DictionaryLike | Sequence[DictionaryLike],
    training: Matrix,
    training_base: Matrix,
    doc_ids: PerRow,
    token_ids: PerRow | None = None,
    positions: PerRow | None = None,
    corpora: PerRow | None = None,
    seed: int = 0,
) -> Visibility:
    """Decides which latents of a delta dictionary the reference can see, and what that says of the whole change.

    Args:
        deltas: evaluation deltas, float32 [token, d_model].
        base: base activations on the same rows.
        dictionary: fitted to the training deltas.
        reference: the base model's dictionary that is held against it.
        base_dictionaries: two or more others, fitted to base activations: their latents are visible by
            construction, and say what a visible latent scores.
        second: delta dictionaries of other seeds; a latent is judged if each of them has it too.
        training: training deltas.
        training_base: base activations on the training rows.
        doc_ids: document of each evaluation row.
        token_ids: token of each evaluation row; without it, whether latents fire with the reference is
            undefined.
        positions: place of each evaluation row in its document.
        corpora: text that each evaluation row is from; structure is then looked for within each.

    Raises:
        GeometryError: matrices that do not fit each other, a bare decoder, fewer than two base dictionaries.
        PrecisionError: NaN or infinity.
    """
    rows = Rows.of(deltas, base, training, training_base, doc_ids, token_ids, positions, corpora)
    others = tuple(second) if isinstance(second, Sequence) else (second,)
    check_dictionaries(rows.width, dictionary, reference, tuple(base_dictionaries), others)
    kept = _Kept.of(dictionary, others, rows, seed)
    metric = Metric.of(Moments.of(rows.training))
    scale, reasons = scale_of(metric, kept.directions[kept.able], reference, base_dictionaries, rows, seed)
    reasons = kept.reasons + reasons
    if scale is None:
        return _answer(kept, None, [], [], scale, reasons, seed)
    judged = judge(metric.expressed(kept.directions[kept.able], living_rows(reference)), scale)
    apart, told = firing_apart(kept.training, kept.evaluation, reference, rows, seed)
    labels: tuple[LatentLabel, ...] = tuple(
        "partly" if label == "visible" and a else label for label, a in zip(judged.labels, apart, strict=True)
    )
    groups = [x for x in (rows.doc_ids, rows.token_ids) if x is not None]
    training_side, evaluation_side = (kept.training, rows.training_base), (kept.evaluation, rows.base)
    ties = tie(training_side, evaluation_side, kept.directions[kept.able], groups, seed)
    return _answer(kept, judged, labels, classes(ties, ~judged.lost), scale, reasons + told, seed)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Repeating latents, and which of them can be judged."""

    index: Int[np.ndarray, " latent"]
    directions: Float[Tensor, "latent d_model"]
    firings: Int[np.ndarray, " latent"]
    able: Bool[np.ndarray, " latent"]
    training: csr_array
    """Codes of those that can be judged."""
    evaluation: csr_array
    reasons: list[str]

    @classmethod
    def of(
        cls, dictionary: DictionaryLike, others: Sequence[DictionaryLike], rows: Rows, seed: int
    ) -> "_Kept":
        mean = rows.training.mean(0)
        own = Active.of(dictionary, rows.training, rows.deltas)
        seeds = [Active.of(s, rows.training, rows.deltas) for s in others]
        found = repeating(own, seeds, rows.training - mean, rows.deltas - mean)
        order = np.argsort(found.latent)
        latent, directions = found.latent[order], found.directions[torch.from_numpy(order)]
        firings = own.firings[latent]
        metric = Metric.of(Moments.of(rows.training))
        often = own.often[latent]
        apart = metric.kept(directions) >= ALONG_MEAN
        shaped = Texts.of(rows.deltas, rows.training, rows.corpora).structured(directions, seed)
        able = often & apart & shaped
        reasons = [
            f"{len(latent)} of {len(own.index)} latents repeat (cosine {REPEATS:g}), {int(able.sum())} can be judged"
        ]
        for left, why in (
            (
                ~often,
                f"fire fewer than {MIN_FIRINGS} times, or on fewer than {MIN_STRONG} rows with strength",
            ),
            (often & ~apart, "lie along the mean change, which is scored by itself"),
            (often & apart & ~shaped, "are told from nothing Gaussian of the same covariance"),
        ):
            if left.any():
                reasons.append(f"{int(left.sum())} latents cannot be judged: they {why}")
        first, rest = (csr_array(x[:, latent[able]]) for x in (own.training, own.evaluation))
        return cls(own.index[latent], directions, firings, able, first, rest, reasons)


def _answer(
    kept: _Kept,
    judged: Judged | None,
    labels: Sequence[LatentLabel],
    kinds: Sequence[Scaling | None],
    scale: Scale | None,
    reasons: list[str],
    seed: int,
) -> Visibility:
    """Puts labels on the judged latents, and the rule on their share."""
    told: dict = {}
    if judged is not None:
        told = dict(
            zip(np.flatnonzero(kept.able), zip(labels, judged.p, judged.q, kinds, strict=True), strict=True)
        )
    latents = []
    for at, (index, firings) in enumerate(zip(kept.index, kept.firings, strict=True)):
        label, p, q, kind = told.get(at, ("cannot be judged", None, None, None))
        p, q = (None if x is None else float(x) for x in (p, q))
        latents.append(LatentVisibility(int(index), label, p, q, kind, int(firings)))
    named = sum(x.label == "not visible" for x in latents)
    sure = sum(x.label != "cannot be judged" for x in latents)
    if judged is None or scale is None or sure < FEWEST:
        reasons = [*reasons, f"{sure} latents are judged, {FEWEST} are needed"]
        share = undefined(reasons[-1], n=sure)
        return Visibility("INCONCLUSIVE", share, (0.0, 1.0), tuple(latents), tuple(reasons))
    unsure = int(judged.lost.sum()) - named
    interval = share_interval(named, named + unsure, len(judged.p))
    share = Measure(named / sure, null=0.0, ceiling=1.0, ci=interval, n=sure)
    if unsure:
        reasons.append(
            f"{unsure} latents score as low as absent ones, and so do base latents: they count at one end of the interval"
        )
    alike = (kept.directions[kept.able] @ kept.directions[kept.able].T).abs() >= REPEATS
    once = 1 / alike.sum(1).double().numpy()
    f = float((once * judged.named).sum() / once.sum())
    features = features_held(f, float(once.sum()), scale, np.random.default_rng([seed, 15]))
    label = label_of(interval, sure)
    if label == "INCONCLUSIVE":
        reasons.append(
            f"the interval [{interval[0]:.2f}, {interval[1]:.2f}] of the share that is not visible fits no label"
        )
    return Visibility(label, share, features, tuple(latents), tuple(reasons))
