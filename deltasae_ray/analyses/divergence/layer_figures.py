"""Figures of one adapter at one layer that no delta dictionary enters: those without a reference, and those
with one."""

import numpy as np
import torch

from deltasae_ray.metrics.adapter_layer import AdapterLayer
from deltasae_ray.metrics.change_size import size_of_change
from deltasae_ray.metrics.coding.monitor import monitor_view, reconstruction
from deltasae_ray.metrics.coding.variants import VARIANTS
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.angles import pca_angles
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import bootstrap_counts, document_codes


def layer_measures(layer: AdapterLayer) -> dict[str, Measure]:
    """Measures what needs no reference, by name of the catalogue. Deltas that are all zero have only their
    size; ratios are undefined."""
    measures = size_of_change(layer)
    if layer.rows.silent:
        return measures
    return measures | pca_angles(layer)


def reference_measures(context: Context) -> dict[str, Measure]:
    """Measures a reference on deltas that are not silent: the monitor's view, and the mean change."""
    layer, seen = context.layer, reconstruction(context.reference)
    deltas, base, mean = layer.coded_deltas, layer.coded_base, layer.delta.mean.float()
    document, num_docs = document_codes(layer.documents[0][layer.coded_rows])
    counts = bootstrap_counts(
        num_docs, layer.settings.bootstrap, np.random.default_rng([layer.settings.seed, 3])
    )
    with torch.no_grad():
        measures = monitor_view(
            seen, base, deltas, layer.flipped, mean, document, counts, layer.other_coordinates
        )
    return measures | shift(context)


def shift(context: Context) -> dict[str, Measure]:
    """The mean change in every variant: of some coordinates or all, and of changes as they are or of their
    directions."""
    measures: dict[str, Measure] = {}
    for suffix, trimmed, average in VARIANTS:
        columns = context.layer.other_coordinates if trimmed else slice(None)
        cosine = context.layer.mean_vector(trimmed, average).against(context.reference_rows[:, columns])
        measures |= {f"{name}{suffix}": m for name, m in cosine.items()}
    return measures
