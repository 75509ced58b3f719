"""Does a latent fire with a latent of the reference, beyond what token and position alone bring about?"""

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control

from deltasae_ray.metrics.firing.coactivation import partners
from deltasae_ray.metrics.firing.firings import fires
from deltasae_ray.metrics.firing.surplus import Surplus, strata
from deltasae_ray.metrics.statistics import document_codes
from deltasae_ray.metrics.visibility.base_side import BaseSide
from deltasae_ray.metrics.visibility.rows import Rows

_AT_ONCE = 256
"""Latents whose firings are held dense at a time."""
RATE = 0.05
"""False discovery rate at which a latent counts as firing with its partner."""
FEWEST_DOCUMENTS = 8
"""Documents below which signs cannot be drawn in ways enough."""
ENOUGH = 20
"""Evaluation firings from which a latent that does not fire with its partner is said not to."""


def firing_apart(
    training: csr_array, evaluation: csr_array, side: BaseSide, rows: Rows, seed: int
) -> tuple[Bool[np.ndarray, " latent"], list[str]]:
    """Tells which latents fire often, and yet not with the reference latent that they fire with most.

    Args:
        training: codes of the delta latents on the training rows, by which partners are chosen.
        evaluation: the same on the evaluation rows.
        side: the reference's, and where it fires.
    """
    often = np.asarray(fires(evaluation).sum(0)).ravel()
    nowhere = np.zeros(len(often), dtype=bool)
    if rows.token_ids is None:
        return nowhere, ["no token_ids: whether latents fire with the reference is undefined"]
    stratum = strata(rows.token_ids, rows.positions)
    if document_codes(rows.doc_ids)[1] < FEWEST_DOCUMENTS:
        return nowhere, [
            f"fewer than {FEWEST_DOCUMENTS} documents: whether latents fire with the reference is undefined"
        ]
    if np.bincount(stratum).max() < 2:
        return nowhere, [
            "no token comes twice in a band of positions: whether latents fire with the reference is "
            "undefined"
        ]
    others = side.firings
    partner = partners(fires(training), fires(others.training))
    rng, p = np.random.default_rng([seed, 16]), np.ones(len(often))
    for some in np.array_split(np.arange(len(often)), -(-len(often) // _AT_ONCE)):
        own = csr_array(evaluation[:, some]).toarray() > 0
        seen = csr_array(others.evaluation[:, np.maximum(partner[some], 0)]).toarray() > 0
        p[some] = Surplus.of(own, seen & (partner[some] >= 0), stratum, rows.doc_ids).p(rng)
    apart = (false_discovery_control(p) > RATE) & (often >= ENOUGH)
    note = f"{apart.sum()} of {len(apart)} judged latents fire with no reference latent"
    return apart, [f"{note} beyond token and position"] if apart.any() else []
