"""What a latent does to the base activations: amplifies, suppresses or turns a base feature, or adds to them.

Latent scaling (Minder et al. 2025, arXiv 2504.02922) asks in closed form how much of a latent's direction
the base activations hold when it fires. Here the whole vector is taken, β = Σ z h / Σ z²: its length
against chance says whether the base activations go along, and its cosine with the direction of the change
says how.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.firing.firings import num_rows
from deltasae_ray.metrics.moments import Moments, outside
from deltasae_ray.metrics.statistics import document_codes
from deltasae_ray.metrics.visibility.structured import RIDGE

Scaling = Literal["new", "amplified", "suppressed", "turned"]

TIED = 0.1
"""Share of a latent's variance that the base activations must account for, linearly and on other rows."""
SURE = 4.0
"""Standard errors by which that share must exceed chance, and by which it would have where nothing is
found."""
ALONG = 0.8
"""Cosine from which a change goes along the base feature that fires with it."""
PERMUTATIONS = 12


@dataclass(frozen=True, eq=False)
class Tie:
    """How closely latents go with base activations."""

    share: Float[np.ndarray, " latent"]
    """Of each latent's variance, by products of two halves of the rows, so that chance gives 0 on average."""
    error: Float[np.ndarray, " latent"]
    """Standard error of the share under chance."""
    cosine: Float[np.ndarray, " latent"]
    """Of the base activations that go along with the direction of the change, rid of noise; 0 where not
    to be had."""


def tie(
    training: tuple[csr_array, Tensor, Moments],
    evaluation: tuple[csr_array, Tensor],
    directions: Tensor,
    groups: list[np.ndarray],
    seed: int,
) -> Tie:
    """Ties latents to base activations: training rows on one side, evaluation rows in groups on the other.

    Args:
        training: codes [row, latent], base rows and their moments.
        evaluation: codes and base rows of the evaluation rows.
        directions: of the change, unit rows [latent, d_model].
        groups: of each evaluation row, such as its document and its token; what they hold in common is
            taken off, and chance exchanges rows within the last of them.
    """
    moments = training[2]
    values, vectors = moments.spectrum.values, moments.spectrum.vectors.float()
    scale = (1 / (values + RIDGE * values.mean())).sqrt().float()
    first = _together(training[0], training[1] - moments.mean.float())
    within = _centred(evaluation[1] - moments.mean.float(), groups)
    codes = _centred(torch.from_numpy(evaluation[0].toarray()).float(), groups)
    spread = codes.square().sum(0).sqrt().clamp_min(1e-12)
    second = (codes / spread).T @ within / len(within) ** 0.5
    white = (first @ vectors * scale).double()
    share = (white * (second @ vectors * scale)).sum(1).numpy()
    rng, drawn = np.random.default_rng([seed, 13]), []
    for _ in range(PERMUTATIONS):
        order = _exchanged(groups[-1] if groups else np.zeros(len(within), int), rng)
        other = (codes[order] / spread).T @ within / len(within) ** 0.5
        drawn.append((white * (other @ vectors * scale)).sum(1).numpy())
    along = outside(first, moments.mean.float()), outside(second, moments.mean.float())
    square = (along[0] * along[1]).sum(1).clamp_min(1e-12)
    weight = torch.tensor([len(training[1]), len(within)], dtype=torch.float32)
    mixed = (along[0] * weight[0] + along[1] * weight[1]) / weight.sum()
    cosine = (mixed * unit_rows(directions.float())).sum(1) / square.sqrt()
    error = np.sqrt(np.square(drawn).mean(0))
    return Tie(share, error, np.where(share > SURE * error, cosine.clamp(-1, 1).numpy(), 0.0))


def _together(codes: csr_array, rows: Tensor) -> Tensor:
    """Covariance of each latent, of variance 1, with the rows."""
    n = num_rows(codes)
    mean = np.asarray(codes.mean(0)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(codes.multiply(codes).mean(0)).ravel() - mean**2, 1e-24))
    product = csr_array(codes.T) @ rows.numpy().astype(np.float64) - np.outer(
        mean, rows.double().sum(0).numpy()
    )
    return torch.from_numpy(product / spread[:, None] / n).float()


def _centred(x: Tensor, groups: list[np.ndarray]) -> Tensor:
    """Rows without what is common to all, then to each group in turn."""
    x = x - x.mean(0)
    for group in groups:
        codes, n = document_codes(group)
        index = torch.from_numpy(codes)
        count = torch.bincount(index, minlength=n).clamp_min(1).float()[:, None]
        x = x - (torch.zeros(n, x.shape[1]).index_add_(0, index, x) / count)[index]
    return x


def _exchanged(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of rows in which each takes the place of one of its own group."""
    order = np.lexsort((rng.random(len(group)), group))
    place = np.argsort(group, kind="stable")
    exchanged = np.empty(len(group), dtype=np.int64)
    exchanged[place] = order
    return exchanged


def classes(tie: Tie, expressed: Bool[np.ndarray, " latent"]) -> list[Scaling | None]:
    """Classes each latent.

    Without a tie a latent is new, unless the reference has its direction or too few firings leave a tie
    unseen: None.
    """
    scalings: list[Scaling | None] = []
    for share, error, cosine, known in zip(tie.share, tie.error, tie.cosine, expressed, strict=True):
        if share > max(TIED, SURE * error):
            scalings.append(
                "amplified" if cosine >= ALONG else "suppressed" if cosine <= -ALONG else "turned"
            )
        else:
            scalings.append("new" if not known and SURE * error < 1 else None)
    return scalings
