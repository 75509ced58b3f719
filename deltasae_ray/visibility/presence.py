"""The scale of a decision: what latents score that are visible by construction, and what absent ones
score."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.arrays import unit_rows
from deltasae_ray.divergence.inputs import DictionaryLike, living_rows
from deltasae_ray.divergence.matching import best_cosines
from deltasae_ray.divergence.shares import REPEATS
from deltasae_ray.visibility.expression import Metric, Scale
from deltasae_ray.visibility.rows import Rows
from deltasae_ray.visibility.structured import Texts

FLIPPED = 6
"""Sign flips of each latent behind the scores of what is absent."""
FEWEST_PRESENT = 20
"""Base latents below which nothing is known of what a latent scores that the reference has."""
WEAK = 0.1
"""Share of unexpressed base latents from which the reference is called weak, and they are left out of
the scale."""
SURE_BASES = 3
"""Base dictionaries below which the scale is said to be unsure."""


def scale_of(
    metric: Metric,
    directions: Float[Tensor, "latent d_model"],
    reference: DictionaryLike,
    bases: Sequence[DictionaryLike],
    rows: Rows,
    seed: int,
) -> tuple[Scale | None, list[str]]:
    """Scores repeating base latents and flipped delta latents against the reference; None and why where
    that is no scale."""
    reasons = []
    if len(bases) < SURE_BASES:
        reasons.append(f"{len(bases)} base dictionaries: {SURE_BASES} or more make the scale surer")
    if not len(directions):
        return None, [*reasons, "no latent can be judged"]
    atoms = living_rows(reference).cpu()
    texts = Texts.of(rows.base, rows.training_base, rows.corpora)
    found = [_repeating_rows(base, [b for b in bases if b is not base]) for base in bases]
    present = torch.cat([x[torch.from_numpy(texts.structured(x, seed))] for x in found])
    if len(present) < FEWEST_PRESENT:
        return None, [
            *reasons,
            f"{len(present)} latents of the base dictionaries repeat, {FEWEST_PRESENT} are needed for a scale",
        ]
    absent = metric.flipped(directions, max(FLIPPED, -(-100 // len(directions))), seed)
    scale = Scale(np.sort(metric.expressed(present, atoms)), np.sort(metric.expressed(absent, atoms)))
    if not scale.told_apart:
        return None, [
            *reasons,
            f"the reference expresses latents of base dictionaries ({np.median(scale.present):.2f}) hardly better than directions "
            f"that it cannot know ({np.median(scale.absent):.2f})",
        ]
    if scale.unseen >= WEAK:
        reasons.append(
            f"the reference is weak: {scale.unseen:.0%} of the repeating latents of base dictionaries are not expressed by it "
            "either; they are left out of the scale, and a feature of the change may be missing for the same cause"
        )
        scale = Scale(scale.present[scale.present >= scale.bar], scale.absent)
    return scale, reasons


def _repeating_rows(
    base: DictionaryLike, others: Sequence[DictionaryLike]
) -> Float[Tensor, "latent d_model"]:
    """Decoder rows that every other base dictionary has too."""
    rows = unit_rows(living_rows(base)).cpu()
    best = np.min([best_cosines(rows, living_rows(o), absolute=True) for o in others], axis=0)
    return rows[torch.from_numpy(best >= REPEATS)]
