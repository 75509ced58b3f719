"""How far one recipe agrees with itself: the missing share between two halves of the documents."""

from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.missing_share import compare_structure, too_little_training
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.inputs import LeafInputs
from deltasae_ray.metrics.measure import Measure, undefined


def of_halves(context: Context, leaf: LeafInputs) -> dict[str, Measure]:
    """M between the dictionaries of two halves of the documents: one recipe, where nothing but the documents
    differs."""
    of_one, of_other = (context.layer.coding(leaf.beside[role], False) for role in ("half_a", "half_b"))
    pair = match_sizes(of_other, of_one, name="other half's dictionary", ratio=1)
    missing = compare_structure(pair).missing
    if reason := too_little_training(leaf.dictionary, len(context.layer.rows.delta_fit)):
        missing = undefined(reason, null=missing.null, n=missing.n)
    return {"missing_share_halves": missing}
