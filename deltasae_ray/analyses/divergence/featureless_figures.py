"""What the same recipe finds where there is nothing to find: in Gaussian deltas, and with a decoder that
never learns."""

from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.reconstruction import by_encoder, by_pursuit
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.inputs import LeafInputs
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.ratios import difference


def of_gaussian(context: Context, leaf: LeafInputs) -> dict[str, Measure]:
    """How well a dictionary of rows from N(μ, Σ_δ) does on the real deltas, beside the delta dictionary on
    the same sample.

    It had the deltas' second moments to learn and nothing more. What it reaches, the recipe would have shown
    of anything with that covariance. The larger of the two is cut to the smaller: training leaves more
    latents alive on one kind of rows than on the other.
    """
    coder = context.layer.coder
    delta, gaussian = (context.layer.coding(d, False) for d in (leaf.dictionary, leaf.beside["gaussian"]))
    pair = match_sizes(delta, gaussian, name="dictionary of Gaussian deltas", ratio=1)
    own, measured = (
        by_pursuit(coder.sample, s.used.pursuits[0], -1, "energy") for s in (pair.delta, pair.reference)
    )
    sizes = f"sizes: {pair.delta} against {pair.reference}"
    gain = difference(
        own, [measured], coder.resamples.counts, one_of_many="the dictionary of Gaussian deltas"
    )
    return {"gain_over_gaussian": gain.because("note", sizes)}


def of_frozen_decoder(context: Context, leaf: LeafInputs) -> dict[str, Measure]:
    """FVU of the deltas through an encoder that learned to use random unit rows, beside that of the delta
    dictionary's own encoder."""
    layer = context.layer
    raw, mean, sample = layer.coded_deltas, layer.delta.mean, layer.coder.sample
    own, left = (
        by_encoder(d.decode(d.encode(raw)), raw, mean, sample)
        for d in (leaf.dictionary, leaf.beside["frozen_decoder"])
    )
    gain = difference(own, [left], layer.coder.resamples.counts, one_of_many="the frozen decoder")
    return {"gain_over_frozen_decoder": gain}
