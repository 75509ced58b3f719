"""What the same recipe finds, and the reference sees, of an adapter whose directions mean nothing: V, M and
matching of its own."""

import numpy as np

from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.missing_share import compare_structure, too_little_training
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.matching import best_cosines, matched_draws
from deltasae_ray.metrics.geometry.matching_figures import mean_match
from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.measure import Measure, undefined


def of_random_adapter(context: Context, dictionary: DictionaryLike) -> dict[str, Measure]:
    """Measures the random adapter: its deltas by a dictionary of them and by the reference, beside their own
    sign flips, and its latents against atoms of their covariance. Empty where its deltas are not here.

    It has the modules, the singular values and the strength of a trained adapter. What is structure in its
    deltas comes from the model: which tokens move, and what its later blocks make of any push.
    """
    coder, of_reference = context.layer.random_coder, context.random_reference_coding
    if coder is None or of_reference is None:
        return {}
    rows, seed, draws = (
        living_rows(dictionary),
        context.layer.settings.seed,
        context.layer.settings.null_draws,
    )
    null, _ = matched_draws(
        coder.training.spectrum, context.reference_rows, len(rows), draws=draws, seed=seed
    )
    matched = mean_match(best_cosines(rows, context.reference_rows), np.ones(len(rows)), null, None)
    comparison = compare_structure(match_sizes(context.layer.random_coding(dictionary), of_reference))
    missing = comparison.missing
    if reason := too_little_training(dictionary, coder.training.n):
        missing = undefined(reason, null=1.0, n=missing.n)
    return {"max_cosine_random_adapter": matched, "missing_share_random_adapter": missing}
