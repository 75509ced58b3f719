"""The steps of a decision, from rows and dictionaries to an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.measure import undefined
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.visibility.answer import Findings, Visibility, answer
from deltasae_ray.metrics.visibility.decision import LatentLabel, judge
from deltasae_ray.metrics.visibility.expression import Metric
from deltasae_ray.metrics.visibility.kept import Kept
from deltasae_ray.metrics.visibility.leading import leading_directions
from deltasae_ray.metrics.visibility.narrow import Narrow, narrow_basis
from deltasae_ray.metrics.visibility.presence import present_rows, scale_of
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
    moments: Moments
    """Of the training deltas."""
    metric: Metric
    atoms: Float[Tensor, "atom d_model"]
    """Of the reference."""
    present: Float[Tensor, "latent d_model"]
    """Repeating base latents."""
    seed: int


def decided(rows: Rows, dictionaries: Dictionaries, seed: int) -> Visibility:
    """Decides which latents, or which directions of a narrow change, the reference can see."""
    if rows.silent:
        told = "the deltas are the same on every row: no change, or one that the mean change holds whole"
        return Visibility("INCONCLUSIVE", undefined(told), (0.0, 1.0), (), (told,))
    bases, reasons = dictionaries.bases, []
    if len(bases) < FEW_BASES:
        reasons.append(f"{len(bases)} base dictionaries: {FEW_BASES} or more make the scale surer")
    moments = Moments.of(rows.training)
    basis, metric = narrow_basis(moments), Metric.of(moments, Moments.of(rows.training_base))
    metric = metric if basis is None else metric.plain()
    atoms = living_rows(dictionaries.reference).cpu()
    known = _Known(rows, moments, metric, atoms, present_rows(bases, rows, seed), seed)
    kept = Kept.of(dictionaries.delta, dictionaries.seconds, rows, seed)
    narrow = None if basis is None else _narrow(known, basis)
    found, told = _found(known, kept, dictionaries.reference, narrow)
    leading = leading_directions(moments, metric, known.present, atoms, seed)
    return answer(kept, found, narrow or leading, [*reasons, *kept.reasons, *told], seed)


def _narrow(known: _Known, basis: Float[Tensor, "d_model direction"]) -> Narrow | None:
    """A narrow change with its directions judged, beside base latents that the reference expresses."""
    scale, _ = scale_of(known.metric, basis.T.float(), known.present, known.atoms, known.seed)
    if scale is None:
        return None
    held = torch.from_numpy(known.metric.expressed(known.present, known.atoms) >= scale.bar)
    texts = Texts.of(known.rows.deltas, known.rows.training, known.rows.corpora)
    return Narrow.of(known.moments, known.metric, known.present[held], known.atoms, texts, known.seed)


def _found(
    known: _Known, kept: Kept, reference: DictionaryLike, narrow: Narrow | None
) -> tuple[Findings | None, Sequence[str]]:
    """Labels and classes of the latents that can be judged, and what limits them."""
    metric, atoms, rows, seed = known.metric, known.atoms, known.rows, known.seed
    directions = kept.directions[kept.able]
    scale, told = scale_of(metric, directions, known.present, atoms, seed)
    if scale is None:
        return None, told
    scores = metric.expressed(directions, atoms)
    if narrow:  # there latents are mixtures of more than two features, and all are known
        scores = np.maximum(scores, narrow.holding(directions))
    judged = judge(scores, scale)
    lost = directions[torch.from_numpy(judged.lost)]
    lost_scale = scale_of(metric, lost, known.present, atoms, seed)[0] or scale
    apart, more = firing_apart(kept.training, kept.evaluation, reference, rows, seed)
    labels: tuple[LatentLabel, ...] = tuple(
        "partly" if label == "visible" and a else label for label, a in zip(judged.labels, apart, strict=True)
    )
    groups = [x for x in (rows.doc_ids, rows.token_ids) if x is not None]
    sides = (kept.training, rows.training_base), (kept.evaluation, rows.base)
    kinds = classes(tie(*sides, directions, groups, seed), ~judged.lost)
    return Findings(judged, labels, kinds, scale, lost_scale), [*told, *more]
