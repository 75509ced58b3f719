"""Figures of one adapter at one layer that no delta dictionary enters."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.angles import pca_angles, projection_energies
from deltasae_ray.divergence.arrays import unit_rows
from deltasae_ray.divergence.cka import linear_cka
from deltasae_ray.divergence.coding import flips
from deltasae_ray.divergence.context import Context
from deltasae_ray.divergence.mean_change import mean_change
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import matched_rows
from deltasae_ray.divergence.monitor import fit_on_both, monitor_view, reconstruction
from deltasae_ray.divergence.reconstruction import k_at_fvu
from deltasae_ray.divergence.size import size_of_change
from deltasae_ray.divergence.statistics import bootstrap_counts, document_codes
from deltasae_ray.divergence.variants import VARIANTS


def layer_measures(context: Context) -> dict[str, Measure]:
    """All of them, by name of the catalogue. A silent adapter (all deltas zero) has only its size; ratios are undefined."""
    measures = size_of_change(context)
    if not np.any(context.inputs.delta_fit) or not np.any(context.inputs.delta_eval):
        return measures
    return measures | {
        **seen_by_reference(context),
        "k_at_fvu_reference": atoms_needed(context, context.reference_rows),
        **similarity(context),
        **pca_angles(context),
        **projection_energies(context),
    }


def seen_by_reference(context: Context) -> dict[str, Measure]:
    """The monitor's view and the reference's own fit before and after; and the mean change."""
    rows = context.coded_rows
    deltas, base = (_tensor(x, rows) for x in (context.inputs.delta_eval, context.inputs.base_eval))
    document, num_docs = document_codes(context.documents[0][rows])
    counts = bootstrap_counts(num_docs, context.settings.bootstrap, np.random.default_rng([context.settings.seed, 3]))
    reference = context.inputs.reference
    mean = context.delta.mean.float()
    with torch.no_grad():
        flipped = flips(deltas - mean, context.delta.spectrum, context.settings.null_draws, context.settings.seed)
        measures = monitor_view(reconstruction(reference), base, deltas, flipped, mean, document, counts, context.other_coordinates)
        measures |= fit_on_both(reconstruction(reference), base, deltas, document, counts)
    return measures | shift(context)


def shift(context: Context) -> dict[str, Measure]:
    """The mean change in every variant: of some coordinates or all, and of changes as they are or of their directions."""
    measures: dict[str, Measure] = {}
    for suffix, trimmed, average in VARIANTS:
        columns = context.other_coordinates if trimmed else slice(None)
        rows = torch.from_numpy(np.asarray(context.inputs.delta_eval))[:, columns]
        rows = unit_rows(rows) if average == "token" else rows
        base, atoms = (context.trimmed_base if trimmed else context.base).spectrum, context.reference_rows[:, columns]
        found = mean_change(rows, context.documents[0], atoms, base, context.counts, seed=context.settings.seed)
        measures |= {f"{name}{suffix}": m for name, m in found.items()}
    return measures


def _tensor(x: np.ndarray, rows: np.ndarray) -> Float[Tensor, "token d_model"]:
    return torch.from_numpy(np.ascontiguousarray(x[rows])).float()


def atoms_needed(context: Context, rows: Float[Tensor, "latent d_model"]) -> Measure:
    """k_at_fvu of a decoder on the coded rows; null: as many featureless atoms from N(0, Σ_δ)."""
    generator, coder = torch.Generator().manual_seed(context.settings.seed), context.coder
    drawn = matched_rows(coder.rest.spectrum, len(rows), generator)
    return k_at_fvu(coder.sample, coder.outside_mean(rows), coder.resamples.counts, null_atoms=drawn)


def similarity(context: Context) -> dict[str, Measure]:
    """Unbiased CKA of the deltas, and of the adapted activations, with the base activations on the same evaluation rows."""
    deltas, base, docs, seed = context.inputs.delta_eval, context.inputs.base_eval, context.inputs.eval_docs, context.settings.seed
    if context.documents[1] < 4:
        few = undefined(f"{context.documents[1]} evaluation documents: the unbiased HSIC takes at least 4", n=context.documents[1])
        return {"cka_delta_base": few, "cka_adapted_base": few}
    adapted = replace(linear_cka(base + deltas, base, docs, seed=seed), ceiling=1.0)
    return {"cka_delta_base": linear_cka(deltas, base, docs, seed=seed), "cka_adapted_base": adapted}
