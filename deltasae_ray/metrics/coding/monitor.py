"""What a deployed monitor sees: a dictionary made for the base model, with its own encoder, on the adapted
activations."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.metrics.coding.sample import Average
from deltasae_ray.metrics.coding.variants import VARIANTS
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.ratios import Counts, Ratio, Sums, against_draws, row_energy
from deltasae_ray.metrics.statistics import document_sums

Reconstruct = Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token d_model"]]
"""x → x̂, raw units in and out: encode, then decode."""


def reconstruction(dictionary: DictionaryLike) -> Reconstruct:
    """What a dictionary makes of activations with its own encoder."""
    return lambda x: dictionary.decode(dictionary.encode(x))


def monitor_view(  # noqa: PLR0913 - the arrays of one formula
    reconstruct: Reconstruct,
    base: Float[Tensor, "token d_model"],
    deltas: Float[Tensor, "token d_model"],
    flipped: Sequence[Float[Tensor, "token d_model"]],
    mean: Float[Tensor, " d_model"],
    document: np.ndarray,
    counts: Counts,
    smaller: Int[Tensor, " column"],
) -> dict[str, Measure]:
    """δ̂ = SAE(h_b + δ) - SAE(h_b) against δ: R² at the best scale; null: the same with δ flipped.

    The monitor always sees every coordinate. A variant differs in where δ̂ and δ are held against each other,
    so all share its passes.

    Args:
        flipped: the centred deltas with signs flipped in their eigenbasis; the mean is put back, since it is
            scored apart.
        mean: of the training deltas.
        document: of each token, from 0 up; `counts` are the bootstrap draws of the documents.
        smaller: all coordinates but the three of largest variance.
    """
    before = reconstruct(base)
    seen = [(reconstruct(base + d) - before, d) for d in (deltas, *(f + mean for f in flipped))]
    measures: dict[str, Measure] = {}
    for suffix, trimmed, average in VARIANTS:
        columns = smaller if trimmed else slice(None)
        views = [
            _view(s[:, columns], d[:, columns], mean[columns], average, document, counts.shape[1])
            for s, d in seen
        ]
        measures[f"monitor_r2{suffix}"] = _measure(views, counts)
    return measures


def _measure(views: list[Sums], counts: Counts) -> Measure:
    """From the view of the deltas and those of their flips."""
    r2 = [Ratio(v, _r2) for v in views]
    if not np.isfinite(r2[0].value):
        return undefined("the monitor's code does not move, or the deltas do not vary", n=counts.shape[1])
    return against_draws(r2[0], r2[1:], counts, tail="greater", ceiling=1.0)


def _view(
    seen: Tensor, deltas: Tensor, mean: Tensor, average: Average, document: np.ndarray, num_docs: int
) -> Sums:
    """Sums over documents of ⟨δ̂, δ⟩, ‖δ̂‖² and ‖δ‖², all about their means; as a mean over tokens, each over
    its ‖δ‖²."""
    a, b = seen.double() - seen.double().mean(0), deltas.double() - mean.double()
    values = torch.stack([(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)], 1)
    if average == "token":
        energy = values[:, 2:3]
        values = torch.where(energy > 0, values / energy.clamp_min(torch.finfo(energy.dtype).tiny), 0)
    return document_sums(values.cpu().numpy(), document, num_docs)


def _r2(s: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return s[:, 0] ** 2 / (s[:, 1] * s[:, 2])


def paper_relative_errors(
    reference: Reconstruct,
    dictionary: Reconstruct,
    deltas: Float[Tensor, "token d_model"],
    mean: Float[Tensor, " d_model"],
    document: np.ndarray,
    counts: Counts,
) -> dict[str, Measure]:
    """Σ‖δ - SAE(δ)‖² / Σ‖δ‖² of the reference and of the delta dictionary: not about the mean, as it was
    published.

    The reference is applied to deltas themselves, for which neither its biases nor its thresholds were made:
    out of domain. Its null is predicting zero, its ceiling the delta dictionary. The null of the delta
    dictionary is predicting the mean of the training deltas, which alone is below 1 where they share a
    constant shift.
    """
    energy, num_docs, silent = row_energy(deltas), counts.shape[1], "the deltas are zero"
    of_reference, of_dictionary, of_mean = (
        Ratio.share(row_energy(deltas - seen), energy, document, num_docs)
        for seen in (reference(deltas), dictionary(deltas), mean.to(deltas.dtype))
    )
    chance = of_mean.measure(counts, why=silent).value
    own = of_dictionary.measure(counts, null=chance, why=silent)
    measure = of_reference.measure(counts, null=1.0, ceiling=own.value, why=silent)
    return {
        "paper_relative_error": measure.because(
            "note", "out of domain: the reference was made for activations"
        ),
        "paper_relative_error_delta": own,
    }
