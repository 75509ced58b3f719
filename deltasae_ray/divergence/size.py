"""How large a change is and how it is spread: norm, spectrum, concentration. Descriptive: the nulls say what base activations are like."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.divergence.adapter_layer import AdapterLayer
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import outside
from deltasae_ray.divergence.ratios import Ratio, row_energy, with_interval
from deltasae_ray.divergence.statistics import MIN_DOCUMENTS, TOO_FEW_TRAINING_DOCUMENTS, document_sums, jackknife_interval

ENERGIES = (90, 95, 99)
"""Per cent of the variance that `delta_dims_{k}` counts directions for."""
_UNDEFINED = (
    "delta_participation_ratio",
    "delta_effective_rank",
    "delta_top3_energy",
    "delta_top_token_energy",
    "mean_share",
    "mean_direction_share",
)
"""What deltas of zero do not have."""


def size_of_change(layer: AdapterLayer) -> dict[str, Measure]:
    """Norm, spectrum and concentration of the deltas."""
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
        return measures | {name: undefined("the deltas are zero: the adapter changes nothing here", n=num_docs) for name in _UNDEFINED}
    measures |= spectrum_measures(layer)
    mean = layer.delta.mean.to(deltas.dtype)
    largest, centred = row_energy((deltas - mean)[:, layer.largest_coordinates]), row_energy(deltas - mean)
    top = Ratio.share(largest, centred, document, num_docs)
    measures["delta_top3_energy"] = top.measure(layer.counts, null=len(layer.largest_coordinates) / deltas.shape[1])
    measures["mean_direction_share"] = _along_mean(layer, deltas)
    measures["delta_top_token_energy"] = top_token_energy(energy, document, layer.counts)
    return measures


def spectrum_measures(layer: AdapterLayer) -> dict[str, Measure]:
    """How many directions the training deltas fill, beside the base activations; intervals by a jackknife over tenths of the documents."""
    spectrum, of_base = layer.delta.spectrum, layer.base.spectrum
    values = {
        "delta_participation_ratio": (spectrum.participation_ratio, of_base.participation_ratio),
        "delta_effective_rank": (spectrum.effective_rank, of_base.effective_rank),
    }
    values |= {f"delta_dims_{e}": (float(spectrum.dimensions_for(e / 100)), float(of_base.dimensions_for(e / 100))) for e in ENERGIES}
    measures = {name: Measure(value, null=null, n=layer.delta.n) for name, (value, null) in values.items()}
    num_docs = layer.fit_documents[1]
    if num_docs < MIN_DOCUMENTS:
        return {name: m.because(TOO_FEW_TRAINING_DOCUMENTS.format(n=num_docs)) for name, m in measures.items()}
    if not bool(spectrum.values[0] > 0):
        return {name: m.because("interval undefined: the deltas do not vary") for name, m in measures.items()}
    deleted = [_spread(layer, (layer.delta - group).covariance) for group in layer.delta_groups]
    whole = _spread(layer, layer.delta.covariance)
    return {name: _jackknifed(name, m, whole[name], [d[name] for d in deleted], len(spectrum.values)) for name, m in measures.items()}


def _spread(layer: AdapterLayer, covariance: Float[Tensor, "d_model d_model"]) -> dict[str, float]:
    """The figures of a covariance close to that of all training deltas. Its eigenvalues are taken to first order, the diagonal in the
    eigenbasis of all: a jackknife wants how they move, and ten eigenvalue problems would cost more than all else at a large d_model.
    """
    basis = layer.delta.spectrum.vectors
    values = (basis * (covariance @ basis)).sum(0).clamp_min(0)
    share = values / values.sum()
    filled = {f"delta_dims_{e}": _crossing(share, e / 100) for e in ENERGIES}
    return filled | {
        "delta_participation_ratio": float(covariance.trace() ** 2 / covariance.square().sum()),
        "delta_effective_rank": float(torch.exp(-torch.xlogy(share, share).sum())),
    }


def _crossing(share: Float[Tensor, " d_model"], energy: float) -> float:
    """Where the running sum reaches `energy`, between whole numbers of directions: what is counted has no smooth error, this has."""
    running = share.cumsum(0)
    k = int((running < energy).sum().clamp_max(len(share) - 1))
    return k + (energy - float(running[k] - share[k])) / max(float(share[k]), 1e-300)


def _jackknifed(name: str, measure: Measure, value: float, deleted: list[float], d_model: int) -> Measure:
    assert measure.value is not None
    (low, high), _ = jackknife_interval(value, np.array(deleted))
    if name.startswith("delta_dims"):  # counted in whole directions
        low, high = float(math.ceil(low)), float(math.ceil(high))
    return measure.within(max(1.0, low), min(float(d_model), high))


def top_token_energy(energy: Float[np.ndarray, " token"], document: np.ndarray, counts: Float[np.ndarray, "draw doc"]) -> Measure:
    """Share of the energy in the 0.1 % of tokens that carry most; in a resample, in the 0.1 % of its own tokens."""
    few, order = max(1, round(len(energy) / 1000)), np.argsort(-energy, kind="stable")
    sorted_energy, of_document = energy[order], document[order]
    value = float(sorted_energy[:few].sum() / energy.sum())
    tokens, all_energy = (counts @ document_sums(x, document, counts.shape[1]) for x in (np.ones(len(energy)), energy))
    wanted, loudest = np.maximum(1, np.round(tokens / 1000)), 4 * few
    while loudest < len(energy) and (counts[:, of_document[:loudest]].sum(1) < wanted).any():
        loudest *= 2
    taken = np.minimum(counts[:, of_document[:loudest]].cumsum(1), wanted[:, None])
    draws = np.diff(taken, axis=1, prepend=0) @ sorted_energy[:loudest] / all_energy
    return with_interval(Measure(value, null=few / len(energy), n=counts.shape[1]), draws)


def _along_mean(layer: AdapterLayer, deltas: Float[Tensor, "token d_model"]) -> Measure:
    """Share of the variation of the deltas that lies along their mean: it is set aside when they are coded."""
    document, num_docs = layer.documents
    centred = [block.double() - layer.delta.mean for block in deltas.split(2048)]
    left = np.concatenate([row_energy(outside(block, layer.delta.mean)) for block in centred])
    total = np.concatenate([row_energy(block) for block in centred])
    return Ratio.share(total - left, total, document, num_docs).measure(layer.counts, null=1 / deltas.shape[1])
