"""Can the dictionary made for the base model see a change? Decided latent by latent, without a model and
without Ray."""

from collections.abc import Sequence

import torch

from deltasae_ray.metrics.arrays import Matrix
from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.measure import undefined
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.visibility.answer import Findings, LatentVisibility, Visibility, answer
from deltasae_ray.metrics.visibility.decision import LatentLabel, judge
from deltasae_ray.metrics.visibility.expression import Metric
from deltasae_ray.metrics.visibility.kept import Kept
from deltasae_ray.metrics.visibility.leading import leading_directions
from deltasae_ray.metrics.visibility.presence import present_rows, scale_of
from deltasae_ray.metrics.visibility.rows import PerRow, Rows, check_dictionaries
from deltasae_ray.metrics.visibility.scaling import classes, tie
from deltasae_ray.metrics.visibility.together import firing_apart

__all__ = ["LatentVisibility", "Visibility", "visibility"]

FEW_BASES = 3
"""Base dictionaries below which the scale is said to be unsure."""


def visibility(  # noqa: PLR0913 - public: a figure's settings, by keyword
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
    """Decides which latents of a delta dictionary the reference can see, and what that says of the change.

    Args:
        deltas: evaluation deltas, float32 [token, d_model].
        base: base activations on the same rows.
        dictionary: fitted to the training deltas.
        reference: the base model's dictionary that is held against it.
        base_dictionaries: three or more others, fitted to base activations: their latents are visible by
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
        GeometryError: matrices that do not fit each other, a bare decoder, no base dictionary.
        PrecisionError: NaN or infinity.
    """
    rows = Rows.of(deltas, base, training, training_base, doc_ids, token_ids, positions, corpora)
    others = tuple(second) if isinstance(second, Sequence) else (second,)
    bases = tuple(base_dictionaries)
    check_dictionaries(rows.width, dictionary, reference, bases, others)
    if rows.silent:
        told = "the deltas are the same on every row: no change, or one that the mean change holds whole"
        return Visibility("INCONCLUSIVE", undefined(told), (0.0, 1.0), (), (told,))
    reasons = []
    if len(bases) < FEW_BASES:
        reasons.append(f"{len(bases)} base dictionaries: {FEW_BASES} or more make the scale surer")
    moments = Moments.of(rows.training)
    metric = Metric.of(moments, Moments.of(rows.training_base))
    kept = Kept.of(dictionary, others, rows, seed)
    judged_rows, atoms, present = (
        kept.directions[kept.able],
        living_rows(reference).cpu(),
        present_rows(bases, rows, seed),
    )
    leading = leading_directions(moments, metric, present, atoms, seed)
    scale, told = scale_of(metric, judged_rows, present, atoms, seed)
    reasons += [*kept.reasons, *told]
    if scale is None:
        return answer(kept, None, leading, reasons, seed)
    judged = judge(metric.expressed(judged_rows, atoms), scale)
    lost = judged_rows[torch.from_numpy(judged.lost)]
    lost_scale = scale_of(metric, lost, present, atoms, seed)[0] or scale
    apart, told = firing_apart(kept.training, kept.evaluation, reference, rows, seed)
    labels: tuple[LatentLabel, ...] = tuple(
        "partly" if label == "visible" and a else label for label, a in zip(judged.labels, apart, strict=True)
    )
    groups = [x for x in (rows.doc_ids, rows.token_ids) if x is not None]
    sides = (kept.training, rows.training_base), (kept.evaluation, rows.base)
    kinds = classes(tie(*sides, judged_rows, groups, seed), ~judged.lost)
    return answer(kept, Findings(judged, labels, kinds, scale, lost_scale), leading, [*reasons, *told], seed)
