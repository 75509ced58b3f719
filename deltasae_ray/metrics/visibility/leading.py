"""Leading principal directions of a change, each judged by itself.

Where a handful of directions holds most of the variance, as with an adapter of low rank in one module, no
ten features can be told apart in it. Each leading direction is then held against the reference like a
latent: as a sparse code of a few atoms, beside what such codes express of base latents and of directions
that the reference cannot know.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.visibility.decision import LatentLabel, judge
from deltasae_ray.metrics.visibility.expression import ATOMS, Metric
from deltasae_ray.metrics.visibility.presence import Present, scale_of

LEADING = 0.1
"""Share of the variance from which a principal direction is judged by itself."""
MOST = 5
"""Directions that are judged so."""


@dataclass(frozen=True)
class DirectionVisibility:
    """What is known of one leading principal direction of the deltas."""

    variance: float
    """Its share of the variance of the training deltas."""
    label: LatentLabel
    p: float | None
    """Probability that a latent of a base dictionary is expressed as badly by as many atoms; None where
    not judged."""


def leading_directions(
    deltas: Moments, metric: Metric, present: Present, atoms: Float[Tensor, "atom d_model"], seed: int
) -> tuple[DirectionVisibility, ...]:
    """Judges every direction with a tenth of the variance or more, at most five.

    As many atoms may express one as there are directions, since principal directions mix what is written.

    Args:
        deltas: moments of the training deltas.
        present: repeating latents of base dictionaries, scored against the same atoms.
        atoms: of the reference.
    """
    spectrum, total = deltas.spectrum, float(deltas.spectrum.values.sum())
    if not total > 0:
        return ()
    share = (spectrum.values[:MOST] / total).tolist()
    share = [x for x in share if x >= LEADING]
    directions, k = spectrum.top(len(share)).T.float(), max(ATOMS, len(share))
    if not share:
        return ()
    scores = present.scores if k == ATOMS else metric.expressed(present.rows, atoms, k)
    scale, _ = scale_of(metric, directions, scores, atoms, seed, k)
    if scale is None:
        return tuple(DirectionVisibility(x, "cannot be judged", None) for x in share)
    judged = judge(metric.expressed(directions, atoms, k), scale)
    return tuple(
        DirectionVisibility(x, label, float(p))
        for x, label, p in zip(share, judged.labels, judged.p, strict=True)
    )
