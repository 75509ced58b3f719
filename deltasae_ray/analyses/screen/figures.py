"""An adapter read from its weights alone: spectra, norms by module, and the tokens that it reads and writes.

Every figure is one of the products s·B·A, so that another pair of factors of the same product, (B·R, R⁻¹·A),
has the same figures.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from deltasae_ray.errors import AdapterError
from deltasae_ray.metrics.geometry.weight_products import Product

CANNOT_TELL = (
    "The screen runs no model. It cannot say what a change does, whether anything calls it, or which text it"
    " is on. A rotation of the model's hidden basis, or a change spread thinly over many modules, hides from"
    " it. A score says only how an adapter stands among the reference adapters, which must be of the same"
    " base and be trained alike."
)
"""What stands beside every result."""
_DIRECTIONS = 64
"""Leading directions, over all modules together, that tokens are held against."""
_BLOCK = 1 << 15
"""Tokens that are held against them at once."""
_LISTED = 10


@dataclass(frozen=True)
class Screened:
    """The figures of one adapter."""

    figures: dict[str, float]
    """By name; see FIGURES."""
    shares: dict[str, float]
    """Kind of module → its share of the squared norm."""
    read: tuple[int, ...]
    """Tokens whose embeddings the change answers to most, the first most."""
    written: tuple[int, ...]
    """Tokens whose unembeddings it writes along most."""


FIGURES: Mapping[str, str] = {
    "norm": "Frobenius norm of all changes together",
    "top_share": "share of a module's energy in its first singular direction, weighted by energy",
    "effective_rank": "participation ratio of a module's squared singular values, weighted by energy",
    "spread": "coefficient of variation over modules of the norm per √(in · out) (2605.30189)",
    "late_share": "share of the energy in the last half of the blocks",
    "down_share": "share of the energy in modules that write the MLP's output",
    "read_peak": "largest response to a token's embedding, in standard deviations over the vocabulary",
    "write_peak": "largest writing along a token's unembedding, in standard deviations over the vocabulary",
}


def screened(
    changes: Sequence[Product],
    embedding: Float[Tensor, "token d_model"],
    unembedding: Float[Tensor, "token d_model"],
) -> Screened:
    """All figures of an adapter; zeros where it changes nothing.

    Args:
        embedding: rows that tokens enter the residual stream as.
        unembedding: rows of the language-model head.

    Raises:
        AdapterError: the adapter has no low-rank factors of linear modules.
    """
    if not changes:
        raise AdapterError(
            "the adapter holds no low-rank factors of linear modules: there is nothing to screen"
        )
    energy = np.array([p.energy for p in changes])
    total, width = float(energy.sum()), embedding.shape[1]
    if total == 0:
        return Screened(dict.fromkeys(FIGURES, 0.0), {}, (), ())
    weight = energy / total
    squares = [p.values.square() for p in changes]
    top = np.array([float(s[0] / s.sum()) if s.sum() > 0 else 0.0 for s in squares])
    rank = np.array([float(s.sum() ** 2 / s.square().sum()) if s.sum() > 0 else 0.0 for s in squares])
    sizes = np.sqrt([e / (p.left.shape[0] * p.right.shape[0]) for e, p in zip(energy, changes, strict=True)])
    kinds = {
        k: float(weight[[p.kind == k for p in changes]].sum()) for k in sorted({p.kind for p in changes})
    }
    read, read_peak = _standing_out(_together(changes, width, reads=True), embedding)
    written, write_peak = _standing_out(_together(changes, width, reads=False), unembedding)
    figures = {
        "norm": total**0.5,
        "top_share": float(weight @ top),
        "effective_rank": float(weight @ rank),
        "spread": float(sizes.std() / sizes.mean()),
        "late_share": float(weight[_late(changes)].sum()),
        "down_share": sum(
            s for kind, s in kinds.items() if kind in ("down_proj", "c_proj", "dense_4h_to_h", "fc2")
        ),
        "read_peak": read_peak,
        "write_peak": write_peak,
    }
    return Screened(figures, kinds, read, written)


def _late(changes: Sequence[Product]) -> np.ndarray:
    """Which modules lie in the last half of the blocks; the block is the first number in a module's name."""
    blocks = np.array([int(m[0]) if (m := re.search(r"\d+", p.module)) else -1 for p in changes])
    return blocks > blocks.max() / 2


def _together(changes: Sequence[Product], width: int, *, reads: bool) -> Float[Tensor, "direction d_model"]:
    """Leading directions of the residual stream that the modules read, or write, each module counted with the
    energy 1."""
    sides = [
        ((p.right if reads else p.left) * p.values / p.energy**0.5).T
        for p in changes
        if p.energy > 0 and (p.right if reads else p.left).shape[0] == width
    ]
    if not sides:
        return torch.zeros(0, width, dtype=torch.float64)
    _, values, vh = torch.linalg.svd(torch.cat(sides), full_matrices=False)
    return (values[:, None] * vh)[:_DIRECTIONS]


def _standing_out(
    directions: Float[Tensor, "direction d_model"], rows: Float[Tensor, "token d_model"]
) -> tuple[tuple[int, ...], float]:
    """The tokens whose unit rows have the largest part in the directions, and how far the first stands out.

    What all rows share, their mean, is taken off: it says nothing of a token.
    """
    if not len(directions):
        return (), 0.0
    mean, turned = rows.mean(0), directions.T.float()
    gains = []
    for block in rows.split(_BLOCK):
        centred = block - mean
        gains.append(((centred @ turned).square().sum(1) / centred.square().sum(1).clamp_min(1e-30)).sqrt())
    gain = torch.cat(gains)
    best: Int[Tensor, " token"] = gain.topk(min(_LISTED, len(gain))).indices
    spread = gain.std()
    peak = float((gain.max() - gain.mean()) / spread) if spread > 0 else 0.0
    return tuple(best.tolist()), peak


@dataclass(frozen=True)
class Standing:
    """Where a figure stands among those of reference adapters."""

    value: float
    above: int
    """Reference adapters whose figure is at least as large."""
    of: int
    p: float
    """(above + 1) / (of + 1)."""
    low: float
    """Lower end of the exact 95 % interval of the share above (Clopper and Pearson 1934)."""
    high: float
    """Upper end of that interval."""


def standing(value: float, reference: Sequence[float]) -> Standing:
    """The place of a value among a reference set; without any, the interval is all of [0, 1]."""
    above, of = int(np.sum(np.asarray(reference) >= value)), len(reference)
    if not of:
        return Standing(value, 0, 0, 1.0, 0.0, 1.0)
    interval = stats.binomtest(above, of).proportion_ci(0.95, method="exact")
    return Standing(value, above, of, (above + 1) / (of + 1), float(interval.low), float(interval.high))
