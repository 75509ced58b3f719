"""Which tokens a direction of the residual stream speaks for: the logit lens, through the model's own final
norm and head.

Of latents, of the mean change, and of the mean change on the first tokens of text that has nothing to do with
the adapter (the activation difference lens, Minder et al. 2510.13900): cheap, and strong on narrow adapters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.models.behaviour import language_head
from deltasae_ray.models.load import base_of, blocks
from deltasae_ray.models.patching import continued

_ROWS = 256
"""Directions that pass the head at once."""


@dataclass(frozen=True)
class Lens:
    """What one direction says."""

    promoted: tuple[int, ...]
    """Tokens whose logits it raises most, the first most."""
    suppressed: tuple[int, ...]
    """Tokens whose logits it lowers most."""
    peak: float
    """The largest logit, in standard deviations of the direction's logits over the vocabulary above their
    mean: how plainly it speaks."""


@torch.no_grad()
def final_norm(model: nn.Module, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What the head reads where `x` stands in the residual stream after the last block."""
    ids = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
    return continued(model, ids, Hookpoint(len(blocks(model)) - 1), x[:, None])[:, 0]


@torch.no_grad()
def logit_lens(model: nn.Module, directions: Float[Tensor, "row d_model"], tokens: int = 10) -> list[Lens]:
    """The lens of every direction, whatever its length; a direction of zeros speaks for whatever the norm's
    bias does.

    Args:
        model: all blocks and the head.
        tokens: promoted and suppressed tokens of each.
    """
    head, device = language_head(model), next(base_of(model).parameters()).device
    # Norms divide by the length, down to their epsilon: a direction as long as a typical residual stream is
    # far above it.
    rows = unit_rows(directions.detach().to(device, torch.float32)) * directions.shape[1] ** 0.5
    lenses: list[Lens] = []
    for part in rows.split(_ROWS):
        lenses += _read(head.blocks(final_norm(model, part)), len(part), tokens)
    return lenses


def _read(vocabulary: Iterator[tuple[int, Float[Tensor, "block row"]]], rows: int, tokens: int) -> list[Lens]:
    """One pass over the vocabulary; its logits are never held."""
    best: list[tuple[Tensor, Tensor]] = []
    """Largest logits and their tokens, [row, at most tokens]: of the logits, and of their negatives."""
    sums, squares, count = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64), 0
    for start, block in vocabulary:
        logits = block.T.cpu().double()
        sums, squares, count = sums + logits.sum(1), squares + logits.square().sum(1), count + logits.shape[1]
        names = torch.arange(start, start + logits.shape[1]).expand(rows, -1)
        seen = best or [(logits[:, :0], names[:, :0])] * 2
        best = [
            _largest(torch.cat([old, sign * logits], 1), torch.cat([ids, names], 1), tokens)
            for sign, (old, ids) in zip((1, -1), seen, strict=True)
        ]
    (high, promoted), (_, suppressed) = best
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    peak = (high[:, 0] - mean) / deviation
    return [
        Lens(tuple(promoted[i].tolist()), tuple(suppressed[i].tolist()), float(peak[i])) for i in range(rows)
    ]


def _largest(values: Tensor, names: Int[Tensor, "row seen"], count: int) -> tuple[Tensor, Tensor]:
    top, at = values.topk(min(count, values.shape[1]), dim=1)
    return top, names.gather(1, at)
