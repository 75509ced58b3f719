"""What stands in for a delta when it is patched in, and beside each what featureless atoms do with the same
means.

More atoms to choose from recover more, whatever they are, and so do more atoms per token. Each stand-in has a
null of its own size and k, of several draws: atoms from N(0, Σ_δ), as many as the dictionary has, and as many
a token as it uses. They are coded by pursuit where the dictionary has its own encoder, which makes the null
the harder one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.loss_recovered.figures import nulls_of
from deltasae_ray.metrics.coding.omp import pursue
from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.moments import Moments, matched_rows

Rows = Float[Tensor, "token d_model"]
Estimate = Callable[[Rows, Rows], Rows]
"""(base activations, deltas) → estimated deltas, row by row."""


@dataclass(frozen=True, eq=False)
class StandIn:
    """An estimate of deltas, and what it may use."""

    estimate: Estimate
    atoms: int = 0
    """To choose from; 0 where nothing is chosen."""
    per_token: int = 0
    """Atoms of which one delta is made."""


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """What is known of the deltas without the documents that are patched."""

    moments: Moments
    """Of all training deltas."""
    deltas: Rows
    """Some of the training deltas, on which atoms are chosen and latents counted."""
    base: Rows
    """Base activations of the same tokens."""


def stand_ins(
    dictionary: DictionaryLike, reference: DictionaryLike, training: TrainingRows, seed: int
) -> dict[str, StandIn]:
    """Variant → stand-in, nulls included."""
    own, others = living_rows(dictionary), living_rows(reference)

    def seen(base: Rows, delta: Rows) -> Rows:
        return _reconstructed(reference, base + delta) - _reconstructed(reference, base)

    with torch.no_grad():
        used = latents_used(dictionary.encode(training.deltas), torch.zeros(()))
        changed = latents_used(
            reference.encode(training.base + training.deltas), reference.encode(training.base)
        )
    estimates = {
        "encoder": StandIn(lambda _, delta: _reconstructed(dictionary, delta), len(own), used),
        "monitor": StandIn(seen, len(others), changed),
    }
    for variant, rows in {"encoder": own, "monitor": others}.items():
        generator = torch.Generator().manual_seed(seed)
        for null in nulls_of(variant):
            featureless = matched_rows(training.moments.spectrum, len(rows), generator)
            estimates[null] = _pursuing(featureless, estimates[variant].per_token, training)
    return estimates


def latents_used(codes: Float[Tensor, "token latent"], others: Tensor) -> int:
    """In how many latents two codes of a token differ, on average: of how many atoms their difference is
    made."""
    return max(1, round(float((codes != others).sum(1).double().mean())))


def _pursuing(atoms: Rows, per_token: int, training: TrainingRows) -> StandIn:
    """μ and `per_token` of the atoms."""
    mean, k = training.moments.mean, min(per_token, len(atoms))
    return StandIn(
        lambda _, delta: delta - pursue(delta - mean.to(delta), atoms.to(delta), k).residual, len(atoms), k
    )


def _reconstructed(dictionary: DictionaryLike, x: Rows) -> Rows:
    return dictionary.decode(dictionary.encode(x))
