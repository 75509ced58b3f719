"""Everything that is said about one dictionary of one adapter at one layer."""

import numpy as np
import torch

from deltasae_ray.analyses.controls import figures_beside
from deltasae_ray.analyses.divergence.layer_figures import layer_measures, reference_measures
from deltasae_ray.metrics.catalogue import AUDITED, BETWEEN, METRICS, PATCHED, SEEN, VARIED
from deltasae_ray.metrics.coding.matched_sizes import Matched, match_sizes
from deltasae_ray.metrics.coding.missing_share import (
    Comparison,
    compare_structure,
    firings_per_latent,
    over_control,
    too_little_training,
)
from deltasae_ray.metrics.coding.monitor import paper_relative_errors, reconstruction
from deltasae_ray.metrics.coding.reconstruction import by_encoder, explained
from deltasae_ray.metrics.coding.variants import VARIANTS
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.firing.coactivation import coactivation_of
from deltasae_ray.metrics.geometry.angles import decoder_angles
from deltasae_ray.metrics.geometry.matching_figures import matching_measures
from deltasae_ray.metrics.geometry.published import published_angles, published_matching
from deltasae_ray.metrics.inputs import DictionaryLike, LayerInputs, LeafInputs, Settings
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.ratios import Ratio


def compare(inputs: LayerInputs, leaf: LeafInputs, settings: Settings | None = None) -> dict[str, Measure]:
    """Every measure of one leaf, by name of the catalogue; those of its layer included."""
    return compare_layer(inputs, [leaf], settings)[0]


def compare_layer(
    inputs: LayerInputs, leaves: list[LeafInputs], settings: Settings | None = None
) -> list[dict[str, Measure]]:
    """Every measure of several dictionaries of one adapter and layer; what they share is computed once.

    Raises:
        GeometryError: dictionaries of another d_model, rows that do not belong together, or a dictionary of
            dead latents only.
    """
    context = Context.of(inputs, settings or Settings())
    return compare_leaves(context, leaves, layer_measures(context.layer))


def compare_leaves(
    context: Context, leaves: list[LeafInputs], of_layer: dict[str, Measure]
) -> list[dict[str, Measure]]:
    """Every measure of several dictionaries that are held against one reference.

    Args:
        of_layer: what needs no reference (`layer_measures`); the same for all references of an adapter and
            layer.
    """
    if context.layer.rows.silent:
        silent = undefined(
            "the deltas are zero: the adapter changes nothing here", n=context.layer.documents[1]
        )
        names = [
            m
            for m in METRICS
            if "{" not in m and m not in (*BETWEEN, *SEEN) and not m.startswith((*PATCHED, AUDITED))
        ]
        names += [f"{m}{suffix}" for m in VARIED if "{" not in m for suffix, _, _ in VARIANTS[1:]]
        return [{name: silent for name in names} | of_layer for _ in leaves]
    shared = of_layer | reference_measures(context)
    return [shared | leaf_measures(context, leaf) for leaf in leaves]


def leaf_measures(context: Context, leaf: LeafInputs) -> dict[str, Measure]:
    """What depends on the delta dictionary."""
    with torch.no_grad():
        return {
            **_training(context, leaf.dictionary),
            **_structure(context, leaf),
            **_encoded(context, leaf),
            "coactivation": coactivation_of(context, leaf.dictionary, leaf.second),
            **matching_measures(context, leaf.dictionary, leaf.second),
            **figures_beside(context, leaf),
            **decoder_angles(context, leaf.dictionary, leaf.second),
            **published_matching(context, leaf.dictionary, leaf.untrained),
            **published_angles(context, leaf.dictionary),
        }


def _training(context: Context, dictionary: DictionaryLike) -> dict[str, Measure]:
    latents, rows = len(dictionary.W_dec), len(context.layer.rows.delta_fit)
    alive = float(dictionary.alive.double().mean())
    reason = "interval undefined: a property of one dictionary"
    return {
        "alive_share": Measure(alive, ceiling=1.0, n=latents).because("ci", reason),
        "firings_per_latent": (
            Measure(firings_per_latent(dictionary, rows), n=dictionary.rows or rows).because("ci", reason)
        ),
    }


def _structure(context: Context, leaf: LeafInputs) -> dict[str, Measure]:
    """M, and everything else that comes from coding the same rows with the same number of atoms."""
    measures: dict[str, Measure] = {}
    for trimmed in (False, True):
        layer = context.layer
        coder = layer.trimmed_coder if trimmed else layer.coder
        delta = layer.coding(leaf.dictionary, trimmed)
        second = None if leaf.second is None else layer.coding(leaf.second, trimmed)
        pair = match_sizes(
            delta, context.trimmed_reference_coding if trimmed else context.reference_coding, second
        )
        baselines = layer.baselines(len(delta.atoms), trimmed)
        for suffix, without_top3, average in VARIANTS:
            if without_top3 == trimmed:
                comparison = compare_structure(pair, average)
                measures |= _of_pair(comparison, suffix) | _beside_control(
                    context, pair, comparison, suffix, trimmed=trimmed
                )
                measures |= explained(coder, delta, comparison, baselines, average, suffix)
    reason = too_little_training(leaf.dictionary, len(context.layer.rows.delta_fit))
    if reason:
        measures |= {
            name: undefined(reason, null=m.null, n=m.n)
            for name, m in measures.items()
            if name.startswith("missing_share")
        }
    return measures


def _of_pair(comparison: Comparison, suffix: str) -> dict[str, Measure]:
    return {
        f"missing_share{suffix}": comparison.missing,
        f"structure_delta{suffix}": comparison.delta.measure,
        f"structure_reference{suffix}": comparison.reference.measure,
    }


def _beside_control(
    context: Context, pair: Matched, comparison: Comparison, suffix: str, *, trimmed: bool
) -> dict[str, Measure]:
    """M of a second dictionary of base activations, of the size that the reference has in M, and how far M
    differs from it."""
    control = context.trimmed_control_coding if trimmed else context.control_coding
    if control is None:
        return {}
    other = compare_structure(pair.against("base control", control), comparison.average)
    return {
        f"missing_share_base_control{suffix}": other.missing,
        f"missing_share_over_base{suffix}": over_control(comparison, other),
    }


def _encoded(context: Context, leaf: LeafInputs) -> dict[str, Measure]:
    """What the dictionary's own encoder makes of the coded rows."""
    layer, sample = context.layer, context.layer.coder.sample
    raw, mean, counts = layer.coded_deltas, layer.delta.mean, layer.coder.resamples.counts
    codes = leaf.dictionary.encode(raw)
    left = by_encoder(leaf.dictionary.decode(codes), raw, mean, sample)
    measures = {
        "fvu_encoder": left.measure(counts, null=1.0),
        **paper_relative_errors(
            reconstruction(context.reference),
            reconstruction(leaf.dictionary),
            raw,
            mean,
            sample.document,
            counts,
        ),
    }
    if not getattr(leaf.dictionary, "k", 0):  # a TopK fixes its density, which is then no result
        fired = (codes > 0).double().sum(1).cpu().numpy()
        measures["density"] = Ratio.share(
            fired, np.ones(len(fired)), sample.document, sample.num_docs
        ).measure(counts)
    return measures
