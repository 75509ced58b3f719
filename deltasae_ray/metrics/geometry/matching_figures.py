"""Matching as figures: how near the latents of the delta dictionary come to the reference's, and what chance
and a twin reach."""

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.latent_shares import REPEATS, novel_share, share_of_latents
from deltasae_ray.metrics.geometry.matching import (
    best_cosines,
    effective_rows,
    fraction_above,
    match,
    matched_draws,
    weighted_mean,
)
from deltasae_ray.metrics.inputs import DictionaryLike, living_energy, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.statistics import draws_p, kappa


def matching_measures(
    context: Context, dictionary: DictionaryLike, second: DictionaryLike | None
) -> dict[str, Measure]:
    """Geometry of the living decoder rows against the reference; the primary null is covariance-matched, the
    ceiling a second seed."""
    rows, energy = living_rows(dictionary), living_energy(dictionary).numpy()
    reference = context.reference_rows
    matching = match(rows, reference)
    drawn = context.drawn_matches(len(rows))
    signed, absolute = (np.stack([getattr(m, way) for m in drawn]) for way in ("signed", "absolute"))
    twin = None if second is None else match(rows, living_rows(second))
    alike, carried = np.ones(len(rows)), _carried(context, len(rows))
    measures = {
        "max_cosine": mean_match(matching.signed, alike, signed, None if twin is None else twin.signed),
        "max_cosine_weighted": mean_match(
            matching.signed, energy, signed, None if twin is None else twin.signed, carried
        ),
        "novel_share": novel_share(matching.absolute, absolute, None if twin is None else twin.absolute),
    }
    if context.base_control is not None:
        measures["max_cosine_base_control"] = _control(context, living_rows(context.base_control))
    if twin is not None:
        null = fraction_above(best_cosines(rows, context.layer.drawn(len(rows))[0], absolute=True), REPEATS)
        measures["repeat_share"] = share_of_latents(twin.absolute >= REPEATS, null=null)
    return measures


def mean_match(
    values: Float[np.ndarray, " latent"],
    weights: np.ndarray,
    null: Float[np.ndarray, "draw latent"],
    twin: Float[np.ndarray, " latent"] | None,
    null_weights: Float[np.ndarray, "draw latent"] | None = None,
) -> Measure:
    """Weighted mean over latents, with its place between the mean of the null's atoms and that of the twin.

    p takes a whole dictionary for one observation: a t test of this mean against those of the null's
    dictionaries. Latents of one dictionary depend on each other, and hundreds of them are not hundreds of
    observations.

    Args:
        twin: of the same latents with a second seed's.
        null_weights: of the null's atoms; by default they count alike.
    """
    if not weights.any():
        return undefined("no latent carries energy", n=len(values))
    value, se = weighted_mean(values, weights)
    drawn = null.mean(1) if null_weights is None else (null * null_weights).sum(1) / null_weights.sum(1)
    center = float(drawn.mean())
    ceiling = None if twin is None else weighted_mean(twin, weights)[0]
    if se is None:
        alone = "interval undefined: one latent carries all the weight"
        return Measure(value, null=center, ceiling=ceiling, n=len(values)).because("ci", alone)
    freedom = max(1.0, effective_rows(weights) - 1)
    reach = float(stats.t.ppf(0.975, freedom)) * se
    gap_se = (
        0.0 if twin is None else float(np.hypot(weighted_mean(twin, weights)[1] or 0.0, drawn.std(ddof=1)))
    )
    ratio, reason = kappa(value, center, ceiling, gap_se, "greater")
    p = draws_p(value, drawn, "greater")
    ci = max(-1.0, value - reach), min(1.0, value + reach)
    place = (
        None
        if ratio is None or twin is None
        else _kappa_interval(values, twin, weights, drawn, ratio, freedom)
    )
    return Measure(
        value, null=center, ceiling=ceiling, ci=ci, p=p, kappa=ratio, n=len(values), kappa_ci=place
    ).because("kappa", reason)


def _kappa_interval(
    values: np.ndarray, twin: np.ndarray, weights: np.ndarray, drawn: np.ndarray, place: float, freedom: float
) -> tuple[float, float]:
    """A jackknife that leaves out one latent at a time, from value and ceiling at once: they are means over
    the same latents, and rise and fall together. The null's dictionaries are independent of them and of each
    other, and enter as variance, by ∂κ/∂null = -(1 - κ)/(ceiling - null).
    """
    w, center, n = weights / weights.sum(), float(drawn.mean()), len(weights)
    without_v, without_c = (((w @ x) - w * x) / (1 - w) for x in (values, twin))
    deleted = (without_v - center) / (without_c - center)
    of_null = (1 - place) ** 2 * float(drawn.var(ddof=1)) / len(drawn) / (float(w @ twin) - center) ** 2
    variance = (n - 1) / n * float(((deleted - deleted.mean()) ** 2).sum()) + of_null
    reach = float(stats.t.ppf(0.975, freedom)) * float(np.sqrt(variance))
    return place - reach, place + reach


def _carried(context: Context, num_rows: int) -> Float[np.ndarray, "draw latent"]:
    """What each atom of the null's dictionaries carries of the training deltas when they are coded with them:
    latents that carry much lie where the deltas vary most, and so do featureless atoms that carry much."""
    use = context.layer.carried(num_rows)
    return (
        use if use.sum(1).all() else np.ones_like(use)
    )  # deltas that are one constant shift leave atoms nothing to carry


def _control(context: Context, control: Tensor) -> Measure:
    """Latents of the base control against the reference: what a dictionary that must be aligned gets; null:
    rows from N(0, Σ_h)."""
    s = context.layer.settings
    null, _ = matched_draws(
        context.layer.base.spectrum, context.reference_rows, len(control), draws=s.null_draws, seed=s.seed
    )
    return mean_match(best_cosines(control, context.reference_rows), np.ones(len(control)), null, None)
