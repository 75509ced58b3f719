"""What the same recipe finds, and the reference misses, of an adapter whose directions mean nothing.

It has the modules, the singular values and the strength of a trained adapter. What is structure in its deltas
comes from the model: which tokens move, and what its later blocks make of any push.
"""

import numpy as np

from deltasae_ray.metrics.coding.missing_share import compare_structure, matched_codings, too_little_training
from deltasae_ray.metrics.geometry.matching import best_cosines, matched_draws
from deltasae_ray.metrics.geometry.matching_figures import mean_match
from deltasae_ray.metrics.inputs import DictionaryLike, LayerRows, Settings, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments


def of_random(
    rows: LayerRows,
    moments: Moments,
    dictionary: DictionaryLike,
    reference: DictionaryLike,
    settings: Settings,
) -> dict[str, Measure]:
    """M of its deltas, and the matching of its latents with the reference against atoms of their covariance;
    by name of the figure that it stands beside.

    Args:
        moments: of the training deltas.
    """
    own, others = living_rows(dictionary), living_rows(reference)
    null, _ = matched_draws(moments.spectrum, others, len(own), draws=settings.null_draws, seed=settings.seed)
    matched = mean_match(best_cosines(own, others), np.ones(len(own)), null, None)
    pair = matched_codings(
        rows.delta_eval, (own, others, None), rows.delta_fit, rows.eval_docs, settings, moments
    )
    missing = pair if isinstance(pair, Measure) else compare_structure(pair).missing
    if reason := too_little_training(dictionary, len(rows.delta_fit)):
        missing = undefined(reason, null=1.0, n=missing.n)
    return {"missing_share": missing, "max_cosine": matched}
