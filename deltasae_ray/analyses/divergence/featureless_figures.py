"""What the same recipe finds where there is nothing to find: in Gaussian deltas, and with a decoder that
never learns."""

from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.coding.dictionary_coding import Coding
from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.reconstruction import by_encoder, by_pursuit
from deltasae_ray.metrics.coding.sample import Sample
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.ratios import Counts, Ratio, difference


def of_gaussian(context: Context, delta: Coding, gaussian: DictionaryLike) -> dict[str, Measure]:
    """How well a dictionary of rows from N(μ, Σ_δ) does on the real deltas, beside the delta dictionary on
    the same sample.

    It had the deltas' second moments to learn and nothing more. What it reaches, the recipe would have shown
    of anything with that covariance.

    Args:
        delta: coding of the sample by the delta dictionary. The larger of the two is cut to the smaller:
            training leaves more latents alive on one kind of rows than on the other.
    """
    coder = context.layer.coder
    pair = match_sizes(
        delta, context.layer.coding(gaussian, False), name="dictionary of Gaussian deltas", ratio=1
    )
    own, found = (
        by_pursuit(coder.sample, s.used.pursuits[0], -1, "energy") for s in (pair.delta, pair.reference)
    )
    sizes = f"sizes: {pair.delta} against {pair.reference}"
    gain = difference(own, [found], coder.resamples.counts, one_of_many="the dictionary of Gaussian deltas")
    return {"gain_over_gaussian": gain.because("note", sizes)}


def of_frozen_decoder(
    frozen: DictionaryLike,
    own: Ratio,
    raw: Float[Tensor, "token d_model"],
    mean: Float[Tensor, " d_model"],
    sample: Sample,
    counts: Counts,
) -> dict[str, Measure]:
    """FVU of the deltas through an encoder that learned to use random unit rows, beside that of the delta
    dictionary's own encoder.

    Args:
        own: what the delta dictionary leaves of the same rows.
        raw: the sample's rows, in raw units.
        mean: of the training deltas.
    """
    left = by_encoder(frozen.decode(frozen.encode(raw)), raw, mean, sample)
    return {"gain_over_frozen_decoder": difference(own, [left], counts, one_of_many="the frozen decoder")}
