"""Shares of a dictionary's latents: with a partner of their own, found again, near nothing in the reference.

What they may be resampled over. A latent's novelty is a property of the decoder, and the decoder was made from all documents at once:
exchanging documents between deltas and base activations, the permutation that CKA gets, leaves every decoder row where it is and the share
with it, so that null would be a constant. What could have come out otherwise is the training: another seed, other documents. So

- a leaf's interval is over its latents, as if they were independent draws of what training could have found. They are not (a feature
  that splits gives several), and it is the least that can be said of one training;
- `novel_share_seeds` is over seeds, `novel_share_halves` over dictionaries of two halves of the documents: refits hold that dependence;
- p is against dictionaries, not latents: a t test against the novel shares of covariance-matched dictionaries.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from deltasae_ray.divergence.assignment import MAX_LATENTS, one_to_one
from deltasae_ray.divergence.context import Context
from deltasae_ray.divergence.inputs import DictionaryLike, living_rows
from deltasae_ray.divergence.matching import best_cosines
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.statistics import draws_p

SHARED = (0.5, 0.7, 0.9)
"""Cosines from which two latents are counted as shared."""
REPEATS = 0.7
"""Cosine from which a latent counts as found again by a second seed."""
NOVEL_QUANTILE = 0.95


def share_of_latents(hit: Bool[np.ndarray, " latent"], *, null: float, ceiling: float | None = None, p: float | None = None) -> Measure:
    """The share of the latents that `hit` marks, with Wilson's interval over latents."""
    count, n = int(hit.sum()), len(hit)
    low, high = (float(x) for x in stats.binomtest(count, n).proportion_ci(method="wilson"))
    return Measure(count / n, null=null, ceiling=ceiling, ci=(low, high), p=p, n=n)


def novel_share(
    best: Float[np.ndarray, " latent"], null: Float[np.ndarray, "draw atom"], twin: Float[np.ndarray, " latent"] | None
) -> Measure:
    """Share of the latents that come no nearer to the reference than 95 % of covariance-matched atoms do.

    Args:
        best: max |cos| of every latent with the reference.
        null: the same of each covariance-matched dictionary; each is judged by the bar of the others.
        twin: max |cos| of every latent with the second seed: what is novel even there.
    """
    hit = best < np.quantile(null, NOVEL_QUANTILE)
    by_chance = np.array([(drawn < np.quantile(np.delete(null, i, 0), NOVEL_QUANTILE)).mean() for i, drawn in enumerate(null)])
    over_latents = NOVEL_QUANTILE * (1 - NOVEL_QUANTILE) * (1 / len(best) + 1 / null.size)
    p = draws_p(float(hit.mean()), by_chance, "less", over_latents)
    ceiling = None if twin is None else float((twin < np.quantile(null, NOVEL_QUANTILE)).mean())
    return share_of_latents(hit, null=NOVEL_QUANTILE, ceiling=ceiling, p=p)


def novel_halves(context: Context, one: Tensor, other: Tensor) -> Measure:
    """Mean novel share of the dictionaries of two halves of the documents; the interval is over halves: mean ± t₁ |a - b| / 2."""
    reference = context.reference_rows
    bar = float(np.quantile(np.stack([m.absolute for m in context.drawn_matches(len(one))]), NOVEL_QUANTILE))
    a, b = (float((best_cosines(rows, reference, absolute=True) < bar).mean()) for rows in (one, other))
    reach = float(stats.t.ppf(0.975, 1)) * abs(a - b) / 2
    ci = max(0.0, (a + b) / 2 - reach), min(1.0, (a + b) / 2 + reach)
    return Measure((a + b) / 2, null=NOVEL_QUANTILE, ci=ci, n=2)


def shared_one_to_one(
    context: Context, rows: Float[Tensor, "latent d_model"], reference: Float[Tensor, "other d_model"], second: DictionaryLike | None
) -> dict[str, Measure]:
    """Shares of the latents with a partner of their own in the reference (one-to-one, |cos|)."""
    pairs, drawn = one_to_one(rows, reference), one_to_one(context.layer.drawn(len(rows))[0], reference)
    twin = None if second is None else one_to_one(rows, living_rows(second))
    names = {f"shared_{round(100 * bar)}": bar for bar in SHARED}
    if pairs is None or drawn is None:
        reason = f"{len(rows)} x {len(reference)} latents are too many for a one-to-one assignment: {MAX_LATENTS:,} of either are the most"
        return {name: undefined(reason, n=len(rows)) for name in names}
    measures = {}
    for name, bar in names.items():
        hit = np.zeros(len(rows), dtype=bool)  # latents that got no partner, where the reference is smaller, are not shared
        hit[: len(pairs)] = pairs >= bar
        best = None if twin is None else float((twin >= bar).sum() / len(rows))
        measures[name] = share_of_latents(hit, null=float((drawn >= bar).sum() / len(rows)), ceiling=best)
    return measures
