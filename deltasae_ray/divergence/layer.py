"""Figures of one adapter at one layer that no delta dictionary enters: those without a reference, and those with one."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.adapter_layer import AdapterLayer
from deltasae_ray.divergence.angles import pca_angles, projection_energies
from deltasae_ray.divergence.cka import linear_cka
from deltasae_ray.divergence.context import Context
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.monitor import fit_on_both, monitor_view, reconstruction
from deltasae_ray.divergence.reconstruction import k_at_fvu
from deltasae_ray.divergence.size import size_of_change
from deltasae_ray.divergence.statistics import bootstrap_counts, document_codes
from deltasae_ray.divergence.variants import VARIANTS


def layer_measures(layer: AdapterLayer) -> dict[str, Measure]:
    """Those that need no reference, by name of the catalogue. Deltas that are all zero have only their size; ratios are undefined."""
    measures = size_of_change(layer)
    if layer.rows.silent:
        return measures
    return measures | {**similarity(layer), **pca_angles(layer), **projection_energies(layer)}


def reference_measures(context: Context) -> dict[str, Measure]:
    """Those of a reference and deltas that are not silent."""
    return seen_by_reference(context) | {"k_at_fvu_reference": atoms_needed(context.layer, context.reference_rows)}


def seen_by_reference(context: Context) -> dict[str, Measure]:
    """The monitor's view and the reference's own fit before and after; and the mean change."""
    layer, seen = context.layer, reconstruction(context.reference)
    deltas, base, mean = layer.coded_deltas, layer.coded_base, layer.delta.mean.float()
    document, num_docs = document_codes(layer.documents[0][layer.coded_rows])
    counts = bootstrap_counts(num_docs, layer.settings.bootstrap, np.random.default_rng([layer.settings.seed, 3]))
    with torch.no_grad():
        measures = monitor_view(seen, base, deltas, layer.flipped, mean, document, counts, layer.other_coordinates)
        measures |= fit_on_both(seen, base, deltas, document, counts)
    return measures | shift(context)


def shift(context: Context) -> dict[str, Measure]:
    """The mean change in every variant: of some coordinates or all, and of changes as they are or of their directions."""
    measures: dict[str, Measure] = {}
    for suffix, trimmed, average in VARIANTS:
        columns = context.layer.other_coordinates if trimmed else slice(None)
        found = context.layer.mean_vector(trimmed, average).against(context.reference_rows[:, columns])
        measures |= {f"{name}{suffix}": m for name, m in found.items()}
    return measures


def atoms_needed(layer: AdapterLayer, rows: Float[Tensor, "latent d_model"]) -> Measure:
    """k_at_fvu of a decoder on the coded rows; null: as many featureless atoms from N(0, Σ_δ)."""
    coder = layer.coder
    return k_at_fvu(coder.sample, coder.outside_mean(rows), coder.resamples.counts, null=layer.drawn_atoms_for_level(len(rows)))


def similarity(layer: AdapterLayer) -> dict[str, Measure]:
    """Unbiased CKA of the deltas, and of the adapted activations, with the base activations on the same evaluation rows."""
    deltas, base, seed = layer.rows.delta_eval, layer.rows.base_eval, layer.settings.seed
    docs, num_docs = layer.documents
    if num_docs < 4:
        few = undefined(f"{num_docs} evaluation documents: the unbiased HSIC takes at least 4", n=num_docs)
        return {"cka_delta_base": few, "cka_adapted_base": few}
    adapted = replace(linear_cka(base + deltas, base, docs, seed=seed), ceiling=1.0)
    return {"cka_delta_base": linear_cka(deltas, base, docs, seed=seed), "cka_adapted_base": adapted}
