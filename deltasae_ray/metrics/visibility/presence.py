"""The scale of a decision: what latents score that are visible by construction, and what absent ones
score."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.coding.dictionary_coding import spread
from deltasae_ray.metrics.geometry.latent_shares import REPEATS
from deltasae_ray.metrics.geometry.matching import best_cosines
from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.visibility.expression import ATOMS, Metric, Scale
from deltasae_ray.metrics.visibility.rows import Rows
from deltasae_ray.metrics.visibility.structured import Texts

FLIPPED, DRAWN = 6, 100
"""Sign flips of each direction behind the scores of what is absent, and how many there are at least of
all together."""
MOST_PRESENT = 384
"""Latents of each base dictionary that are looked at, spread evenly."""
FEWEST_PRESENT = 20
"""Base latents below which nothing is known of what a latent scores that the reference has."""
WEAK = 0.1
"""Share of unexpressed base latents from which the reference is called weak, and they are left out of
the scale."""


def present_rows(bases: Sequence[DictionaryLike], rows: Rows, seed: int) -> Float[Tensor, "latent d_model"]:
    """Decoder rows of base latents that every other base dictionary has too, about something with
    structure."""
    texts, found = Texts.of(rows.base, rows.training_base, rows.corpora), []
    for base in bases:
        own = unit_rows(living_rows(base)).cpu()
        own = own[spread(len(own), MOST_PRESENT)]
        for other in bases:
            if other is not base:
                own = own[torch.from_numpy(best_cosines(own, living_rows(other), absolute=True) >= REPEATS)]
            if not len(own):
                break
        found.append(own[torch.from_numpy(texts.structured(own, seed))])
    return torch.cat(found)


def scale_of(
    metric: Metric,
    directions: Float[Tensor, "latent d_model"],
    present: Float[Tensor, "base_latent d_model"],
    atoms: Float[Tensor, "atom d_model"],
    seed: int,
    k: int = ATOMS,
) -> tuple[Scale | None, list[str]]:
    """Scores present latents and flipped directions against a reference; None and why where that is no scale.

    Args:
        directions: that are to be judged; the scores of their flips are what an absent one scores.
        k: atoms that may express one direction.
    """
    if len(present) < FEWEST_PRESENT:
        return None, [
            f"{len(present)} latents of base dictionaries repeat, {FEWEST_PRESENT} are needed for a scale"
        ]
    if not len(directions):
        return None, ["no latent can be judged"]
    absent = metric.flipped(directions, max(FLIPPED, -(-DRAWN // len(directions))), seed)
    scale = Scale(np.sort(metric.expressed(present, atoms, k)), np.sort(metric.expressed(absent, atoms, k)))
    if not scale.told_apart:
        high, low = np.median(scale.present), np.median(scale.absent)
        told = f"the reference expresses latents of base dictionaries ({high:.2f}) hardly better than"
        return None, [f"{told} directions that it cannot know ({low:.2f})"]
    if scale.unseen < WEAK:
        return scale, []
    told = (
        f"the reference is weak: {scale.unseen:.0%} of the repeating latents of base dictionaries are not "
        "expressed by it either; they are left out of the scale, and a feature of the change may be missing "
        "for the same cause"
    )
    return Scale(scale.present[scale.present >= scale.bar], scale.absent), [told]
