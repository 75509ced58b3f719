"""Shares of a dictionary's latents: found again by another seed, near nothing in the reference.

What they may be resampled over. A latent's novelty is a property of the decoder, and the decoder was made
from all documents at once: exchanging documents between deltas and base activations, the permutation that CKA
gets, leaves every decoder row where it is and the share with it, so that null would be a constant. What could
have come out otherwise is the training: another seed, other documents. So

- a leaf's interval is over its latents, as if they were independent draws of what training could have found.
  They are not (a feature that splits gives several), and it is the least that can be said of one training;
- `novel_share_seeds` is over seeds: refits hold that dependence;
- p is against dictionaries, not latents: a t test against the novel shares of covariance-matched
  dictionaries.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import draws_p

REPEATS = 0.7
"""Cosine from which a latent counts as found again by a second seed."""
NOVEL_QUANTILE = 0.95


def share_of_latents(
    hit: Bool[np.ndarray, " latent"], *, null: float, ceiling: float | None = None, p: float | None = None
) -> Measure:
    """The share of the latents that `hit` marks, with Wilson's interval over latents."""
    count, n = int(hit.sum()), len(hit)
    low, high = (float(x) for x in stats.binomtest(count, n).proportion_ci(method="wilson"))
    return Measure(count / n, null=null, ceiling=ceiling, ci=(low, high), p=p, n=n)


def novel_share(
    best: Float[np.ndarray, " latent"],
    null: Float[np.ndarray, "draw atom"],
    twin: Float[np.ndarray, " latent"] | None,
) -> Measure:
    """Share of the latents that come no nearer to the reference than 95 % of covariance-matched atoms do.

    Args:
        best: max |cos| of every latent with the reference.
        null: the same of each covariance-matched dictionary; each is judged by the bar of the others.
        twin: max |cos| of every latent with the second seed: what is novel even there.
    """
    hit = best < np.quantile(null, NOVEL_QUANTILE)
    by_chance = np.array(
        [(drawn < np.quantile(np.delete(null, i, 0), NOVEL_QUANTILE)).mean() for i, drawn in enumerate(null)]
    )
    over_latents = NOVEL_QUANTILE * (1 - NOVEL_QUANTILE) * (1 / len(best) + 1 / null.size)
    p = draws_p(float(hit.mean()), by_chance, "less", over_latents)
    ceiling = None if twin is None else float((twin < np.quantile(null, NOVEL_QUANTILE)).mean())
    return share_of_latents(hit, null=NOVEL_QUANTILE, ceiling=ceiling, p=p)
