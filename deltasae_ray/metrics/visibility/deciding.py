"""The steps of a decision, from rows and dictionaries to an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.geometry.latent_shares import REPEATS
from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.measure import undefined
from deltasae_ray.metrics.visibility.answer import Findings, Visibility, answer
from deltasae_ray.metrics.visibility.base_side import BaseSide
from deltasae_ray.metrics.visibility.decision import LatentLabel, judge
from deltasae_ray.metrics.visibility.expression import Metric
from deltasae_ray.metrics.visibility.kept import Kept
from deltasae_ray.metrics.visibility.leading import leading_directions
from deltasae_ray.metrics.visibility.narrow import Narrow, narrow_basis
from deltasae_ray.metrics.visibility.presence import Present, scale_of
from deltasae_ray.metrics.visibility.resampled import draws_of
from deltasae_ray.metrics.visibility.rows import Rows
from deltasae_ray.metrics.visibility.scaling import classes, tie
from deltasae_ray.metrics.visibility.structured import Texts
from deltasae_ray.metrics.visibility.together import firing_apart

FEW_BASES = 3
"""Base dictionaries below which the scale is said to be unsure."""


@dataclass(frozen=True, eq=False)
class Dictionaries:
    """What a decision compares."""

    delta: DictionaryLike
    seconds: tuple[DictionaryLike, ...]
    """Delta dictionaries of other seeds."""
    reference: DictionaryLike
    bases: tuple[DictionaryLike, ...]
    """Held-out base dictionaries."""


@dataclass(frozen=True, eq=False)
class _Known:
    """What all steps share."""

    rows: Rows
    side: BaseSide
    metric: Metric
    atoms: Float[Tensor, "atom d_model"]
    """Of the reference."""
    present: Present
    seed: int


def decided(rows: Rows, dictionaries: Dictionaries, seed: int, side: BaseSide | None = None) -> Visibility:
    """Decides which latents, or which directions of a narrow change, the reference can see.

    Args:
        side: of these base activations and dictionaries, where another change has asked for it before.
    """
    if rows.silent:
        note = "the deltas are the same on every row: no change, or one that the mean change holds whole"
        return Visibility("INCONCLUSIVE", undefined(note), (0.0, 1.0), (), (note,))
    bases, reasons = dictionaries.bases, []
    if len(bases) < FEW_BASES:
        reasons.append(f"{len(bases)} base dictionaries: {FEW_BASES} or more make the scale surer")
    reference = dictionaries.reference
    if side is None:
        side = BaseSide(rows.training_base, rows.base, rows.corpora, reference, bases, seed)
    basis, metric = narrow_basis(rows.moments), Metric.of(rows.moments, side.moments)
    metric = metric if basis is None else metric.plain()
    atoms = living_rows(reference).cpu()
    known = _Known(rows, side, metric, atoms, Present.of(side, metric, atoms), seed)
    kept = Kept.of(dictionaries.delta, dictionaries.seconds, rows, seed)
    narrow = None if basis is None else _narrow(known, basis)
    findings, note = _label_latents(known, kept, narrow)
    leading = leading_directions(rows.moments, metric, known.present, atoms, seed)
    return answer(kept, findings, narrow or leading, [*reasons, *kept.reasons, *note], seed)


def _narrow(known: _Known, basis: Float[Tensor, "d_model direction"]) -> Narrow | None:
    """A narrow change with its directions judged, beside base latents that the reference expresses."""
    present, rows = known.present, known.rows
    scale, _ = scale_of(known.metric, basis.T.float(), present.scores, known.atoms, known.seed)
    if scale is None:
        return None
    held = present.rows[torch.from_numpy(present.scores >= scale.bar)]
    texts = Texts.of(rows.deltas, rows.moments, rows.corpora)
    return Narrow.of(rows.moments, known.metric, held, known.atoms, texts, known.seed)


def _label_latents(known: _Known, kept: Kept, narrow: Narrow | None) -> tuple[Findings | None, Sequence[str]]:
    """Labels and classes of the latents that can be judged, and what limits them."""
    metric, atoms, rows, seed = known.metric, known.atoms, known.rows, known.seed
    directions, present = kept.directions[kept.able], known.present
    scale, note = scale_of(metric, directions, present.scores, atoms, seed)
    if scale is None:
        return None, note
    by_seed = [_scores(known, x[kept.able], narrow) for x in (kept.directions, *kept.elsewhere)]
    judged, once = judge(by_seed[0], scale), _once(directions)
    draws = draws_of(by_seed, present, scale.absent, once, seed)
    lost = directions[torch.from_numpy(judged.lost)]
    lost_scale = scale_of(metric, lost, present.scores, atoms, seed)[0] or scale
    apart, more = firing_apart(kept.training, kept.evaluation, known.side, rows, seed)
    labels: tuple[LatentLabel, ...] = tuple(
        "partly" if label == "visible" and a else label for label, a in zip(judged.labels, apart, strict=True)
    )
    groups = [x for x in (rows.doc_ids, rows.token_ids) if x is not None]
    sides = (kept.training, rows.training_base, known.side.moments), (kept.evaluation, rows.base)
    kinds = classes(tie(*sides, directions, groups, seed), ~judged.lost)
    return Findings(judged, labels, kinds, scale, lost_scale, once, draws), [*note, *more]


def _scores(known: _Known, directions: Tensor, narrow: Narrow | None) -> np.ndarray:
    """What the reference expresses of each direction."""
    scores = known.metric.expressed(directions, known.atoms)
    if narrow:  # there latents are mixtures of more than two features, and all are known
        scores = np.maximum(scores, narrow.holding(directions))
    return scores


def _once(directions: Tensor) -> np.ndarray:
    """Weights by which latents of one feature count once."""
    return 1 / ((directions @ directions.T).abs() >= REPEATS).sum(1).double().numpy()
