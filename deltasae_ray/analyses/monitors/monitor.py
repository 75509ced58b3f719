"""A monitor: what a user reads from a model's activations, as one score per token or per document (pure)."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary

Reading = Literal["last", "mean", "max", "each"]
"""How tokens make a score: of the last, the mean or the largest over tokens, or each token by itself."""
READINGS: tuple[Reading, ...] = get_args(Reading)


@dataclass(frozen=True, eq=False)
class Repair:
    """An affine map from adapted to base activations, h ↦ h · matrix + offset."""

    matrix: Float[Tensor, "d_model d_model"]
    offset: Float[Tensor, " d_model"]

    def __call__(self, h: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return h @ self.matrix + self.offset


@dataclass(frozen=True, eq=False)
class Monitor:
    """A linear probe, or chosen latents of a dictionary."""

    name: str
    hookpoint: Hookpoint
    reads: Reading
    weight: Float[Tensor, " d_model"] | None = None
    """Of a probe, in raw units: mean and scale are folded in."""
    bias: float = 0.0
    threshold: float | None = None
    """Above it the user raises an alarm; None where that is not told."""
    dictionary: Dictionary | None = None
    latents: tuple[int, ...] = ()
    """Of the dictionary: their activations are added up."""
    repair: Repair | None = None
    """Applied to activations first."""

    @property
    def d_model(self) -> int:
        if self.weight is not None:
            return len(self.weight)
        assert self.dictionary is not None
        return self.dictionary.d_model

    def token_scores(self, h: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
        """The score of every token."""
        if self.repair is not None:
            h = self.repair(h)
        if self.weight is not None:
            return h @ self.weight + self.bias
        assert self.dictionary is not None
        return self.dictionary.encode(h)[:, list(self.latents)].sum(1)

    def scores(self, h: Float[Tensor, "token d_model"]) -> Float[Tensor, " score"]:
        """The scores of one document: one, or one for each token."""
        return read(self.token_scores(h), self.reads)

    def repaired(self, repair: Repair) -> "Monitor":
        """Makes the monitor for adapted activations; a probe takes the map into its weights."""
        if self.weight is None:
            return replace(self, repair=repair)
        weight = repair.matrix @ self.weight
        return replace(self, weight=weight, bias=self.bias + float(repair.offset @ self.weight))


def read(scores: Float[Tensor, " token"], reads: Reading) -> Float[Tensor, " score"]:
    """Takes tokens' scores of one document together."""
    match reads:
        case "last":
            return scores[-1:]
        case "mean":
            return scores.mean(0, keepdim=True)
        case "max":
            return scores.max(0, keepdim=True).values
        case "each":
            return scores


def fit_repair(
    adapted: Float[Tensor, "token d_model"], base: Float[Tensor, "token d_model"], held_out: Tensor
) -> Repair:
    """Ridge regression of base on adapted activations, in fp64, shrunk towards the identity: what is not
    known stays as it is.

    Args:
        held_out: bool [token]; on these the strength of the ridge is chosen.
    """
    x, d = adapted.double(), (base - adapted).double()
    train, test = ~held_out, held_out
    mean_x, mean_d = x[train].mean(0), d[train].mean(0)
    a, b = x[train] - mean_x, d[train] - mean_d
    gram, cross = a.T @ a, a.T @ b
    unit = gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    best: tuple[float, Tensor] | None = None
    for strength in _STRENGTHS:
        change = torch.linalg.solve(gram + strength * unit * torch.eye(len(gram), dtype=gram.dtype), cross)
        left = float(((x[test] - mean_x) @ change + mean_d - d[test]).square().sum())
        if best is None or left < best[0]:
            best = left, change
    assert best is not None
    matrix = torch.eye(len(gram), dtype=gram.dtype) + best[1]
    return Repair(matrix.float(), (mean_d - mean_x @ best[1]).float())


_STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge, in units of the mean variance of a coordinate."""
