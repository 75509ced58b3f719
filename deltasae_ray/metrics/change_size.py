"""How large a change is and how many directions it fills. Descriptive: the nulls say what base activations
are like."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.adapter_layer import AdapterLayer
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import outside
from deltasae_ray.metrics.ratios import Ratio, row_energy
from deltasae_ray.metrics.statistics import MIN_DOCUMENTS, TOO_FEW_TRAINING_DOCUMENTS, jackknife_interval

_UNDEFINED = ("delta_participation_ratio", "mean_share", "mean_direction_share")
"""What deltas of zero do not have."""


def size_of_change(layer: AdapterLayer) -> dict[str, Measure]:
    """Norm of the deltas, and the directions that share their energy."""
    deltas, base = (torch.from_numpy(np.asarray(x)) for x in (layer.rows.delta_eval, layer.rows.base_eval))
    document, num_docs = layer.documents
    energy, base_energy = row_energy(deltas), row_energy(base)
    ratio = Ratio.share(energy, base_energy, document, num_docs)
    norm = Ratio.share(np.sqrt(energy), np.ones(len(energy)), document, num_docs)
    measures = {
        "delta_norm": norm.measure(layer.counts),
        "delta_relative_energy": ratio.measure(layer.counts, null=0.0, why="the base activations are zero"),
    }
    if layer.rows.silent:
        return measures | {
            name: undefined("the deltas are zero: the adapter changes nothing here", n=num_docs)
            for name in _UNDEFINED
        }
    measures["delta_participation_ratio"] = participation_ratio(layer)
    measures["mean_direction_share"] = _along_mean(layer, deltas)
    return measures


def participation_ratio(layer: AdapterLayer) -> Measure:
    """Directions that share the energy of the training deltas, (Σλ)²/Σλ²; null: those of the base
    activations.

    The interval is by a jackknife over tenths of the training documents.
    """
    spectrum, num_docs = layer.delta.spectrum, layer.fit_documents[1]
    measure = Measure(
        spectrum.participation_ratio, null=layer.base.spectrum.participation_ratio, n=layer.delta.n
    )
    if num_docs < MIN_DOCUMENTS:
        return measure.because("ci", TOO_FEW_TRAINING_DOCUMENTS.format(n=num_docs))
    if not bool(spectrum.values[0] > 0):
        return measure.because("ci", "interval undefined: the deltas do not vary")
    deleted = np.array([_directions((layer.delta - group).covariance) for group in layer.delta_groups])
    (low, high), _ = jackknife_interval(_directions(layer.delta.covariance), deleted)
    return measure.within(max(1.0, low), min(float(len(spectrum.values)), high))


def _directions(covariance: Float[Tensor, "d_model d_model"]) -> float:
    """(Σλ)²/Σλ² without an eigenvalue problem."""
    return float(covariance.trace() ** 2 / covariance.square().sum())


def _along_mean(layer: AdapterLayer, deltas: Float[Tensor, "token d_model"]) -> Measure:
    """Share of the variation of the deltas that lies along their mean: it is set aside when they are
    coded."""
    document, num_docs = layer.documents
    centred = [block.double() - layer.delta.mean for block in deltas.split(2048)]
    left = np.concatenate([row_energy(outside(block, layer.delta.mean)) for block in centred])
    total = np.concatenate([row_energy(block) for block in centred])
    return Ratio.share(total - left, total, document, num_docs).measure(
        layer.counts, null=1 / deltas.shape[1]
    )
