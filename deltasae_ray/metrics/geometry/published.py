"""The figures of arXiv 2605.28896 as it defines them: over all decoder rows, signed, unweighted; beside what
chance gives in each.

They are kept because they were published. None of them tells an adapter from noise: the calibrated ones do
(`alignment`, `angles`).
"""

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.angles import REFITS, angle, curve
from deltasae_ray.metrics.geometry.isotropic import (
    isotropic_max_cosine,
    isotropic_median_cosine,
    isotropic_share_below,
    random_subspace_angle,
)
from deltasae_ray.metrics.geometry.matching import best_cosines, max_cosine, median_interval, weighted_mean
from deltasae_ray.metrics.geometry.subspaces import decoder_spectrum
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.measure import Measure, undefined

NOVEL_BELOW = 0.1
"""Largest cosine below which a latent is counted as novel. The published rule is not known here; its share of
72 to 80 % and its mean of .071 leave room for no higher threshold (with a quarter of the latents above t and
the others at chance, t < .11)."""


def published_matching(
    context: Context, dictionary: DictionaryLike, untrained: Float[Tensor, "latent d_model"] | None
) -> dict[str, Measure]:
    """Mean, median and "novel" share of the signed max-cosines of all decoder rows, dead ones included; null:
    isotropic rows.

    Args:
        untrained: the decoder at its start, measured alike.
    """
    reference, control = context.reference.W_dec.detach(), context.base_control
    best = best_cosines(dictionary.W_dec.detach(), reference)
    ceiling = None if control is None else best_cosines(control.W_dec.detach(), reference)
    n, size = len(best), (len(reference), reference.shape[1])
    measures = {
        "paper_max_cosine": _mean(
            best, isotropic_max_cosine(*size), None if ceiling is None else float(ceiling.mean())
        ),
        "paper_median_cosine": Measure(
            float(np.median(best)),
            null=isotropic_median_cosine(*size),
            ceiling=None if ceiling is None else float(np.median(ceiling)),
            ci=median_interval(best),
            n=n,
        ),
        "paper_novel_share": _novel(best, isotropic_share_below(NOVEL_BELOW, *size), ceiling),
    }
    if untrained is not None:
        measures["paper_max_cosine_untrained"] = max_cosine(untrained, reference)
    return measures


def _mean(best: Float[np.ndarray, " latent"], null: float, ceiling: float | None) -> Measure:
    value, se = weighted_mean(best, np.ones(len(best)))
    if se is None:
        return Measure(value, null=null, ceiling=ceiling, n=1).because(
            "ci", "interval undefined: there is one latent"
        )
    reach = float(stats.t.ppf(0.975, len(best) - 1)) * se
    return Measure(value, null=null, ceiling=ceiling, ci=(value - reach, value + reach), n=len(best))


def _novel(
    best: Float[np.ndarray, " latent"], null: float, ceiling: Float[np.ndarray, " latent"] | None
) -> Measure:
    count, n = int((best < NOVEL_BELOW).sum()), len(best)
    low, high = (float(x) for x in stats.binomtest(count, n).proportion_ci(method="wilson"))
    return Measure(
        count / n,
        null=null,
        ceiling=None if ceiling is None else float((ceiling < NOVEL_BELOW).mean()),
        ci=(low, high),
        n=n,
    )


def published_angles(context: Context, dictionary: DictionaryLike) -> dict[str, Measure]:
    """Mean angle between the leading k right singular vectors of both decoders, every row alike, over k;
    null: random subspaces."""
    rows = dictionary.W_dec.detach()
    own, reference = decoder_spectrum(rows, np.ones(len(rows))), context.reference_row_spectrum
    measures: dict[str, Measure] = {}
    for k in curve(rows.shape[1]):
        if k > min(own.rank, reference.rank):
            measures[f"paper_angle_k{k}"] = undefined(
                f"the decoders span fewer than {k} directions", n=len(rows)
            )
            continue
        null = random_subspace_angle(k, k, rows.shape[1])
        measures[f"paper_angle_k{k}"] = Measure(
            angle(own.top(k), reference.top(k)), null=null, n=len(rows)
        ).because("ci", REFITS)
    return measures
