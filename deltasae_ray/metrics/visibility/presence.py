"""The scale of a decision: what latents score that are visible by construction, and what absent ones
score."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.metrics.visibility.base_side import BaseSide
from deltasae_ray.metrics.visibility.expression import ATOMS, Metric, Scale

FLIPPED, DRAWN = 6, 100
"""Sign flips of each direction behind the scores of what is absent, and how many there are at least of
all together."""
FEWEST_PRESENT = 20
"""Base latents below which nothing is known of what a latent scores that the reference has."""
WEAK = 0.05
"""Share of unexpressed base latents from which the reference is called weak, and they are left out of
the scale: beside as many no latent could pass the correction, however many are not expressed."""


@dataclass(frozen=True, eq=False)
class Present:
    """Repeating latents of base dictionaries that are about something with structure, and what a reference
    expresses of them."""

    rows: Float[Tensor, "latent d_model"]
    """Decoder rows, of norm 1."""
    base: Int[np.ndarray, " latent"]
    """Which base dictionary each is of."""
    many: int
    """Base dictionaries."""
    scores: Float[np.ndarray, " latent"]
    """Of each, by two atoms of the reference."""

    @classmethod
    def of(cls, side: BaseSide, metric: Metric, atoms: Tensor) -> "Present":
        """Scores them against the atoms of a reference."""
        every, base = side.latents
        scores = metric.expressed(every, atoms) if len(every) else np.zeros(0)
        return cls(every, base, len(side.bases), scores)


def scale_of(
    metric: Metric,
    directions: Float[Tensor, "latent d_model"],
    present: Float[np.ndarray, " base_latent"],
    atoms: Float[Tensor, "atom d_model"],
    seed: int,
    k: int = ATOMS,
) -> tuple[Scale | None, list[str]]:
    """Scores flipped directions against a reference, beside present latents; None and why where that is no
    scale.

    Args:
        directions: that are to be judged; the scores of their flips are what an absent one scores.
        present: scores of base latents, by as many atoms.
        k: atoms that may express one direction.
    """
    if len(present) < FEWEST_PRESENT:
        return None, [
            f"{len(present)} latents of base dictionaries repeat, {FEWEST_PRESENT} are needed for a scale"
        ]
    if not len(directions):
        return None, ["no latent can be judged"]
    absent = metric.flipped(directions, max(FLIPPED, -(-DRAWN // len(directions))), seed)
    scale = Scale(np.sort(present), np.sort(metric.expressed(absent, atoms, k)))
    if not scale.separates:
        high, low = np.median(scale.present), np.median(scale.absent)
        note = f"the reference expresses latents of base dictionaries ({high:.2f}) hardly better than"
        return None, [f"{note} directions that it cannot know ({low:.2f})"]
    if scale.unseen < WEAK:
        return scale, []
    note = (
        f"the reference is weak: {scale.unseen:.0%} of the repeating latents of base dictionaries are not "
        "expressed by it either; they are left out of the scale, and a feature of the change may be missing "
        "for the same cause"
    )
    return without_unseen(scale), [note]


def without_unseen(scale: Scale) -> Scale:
    """The scale without base latents that a weak reference does not express either."""
    if scale.unseen < WEAK:
        return scale
    return Scale(scale.present[scale.present >= scale.bar], scale.absent)
