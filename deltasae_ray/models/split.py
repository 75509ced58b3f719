"""What a block itself adds to a delta, and what it passes on.

δ = [F_b(h_a) − F_b(h_b)] propagated + [F_a(h_a) − F_b(h_a)] injected, F the block, a adapted, b base: an
identity (science: deltas).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.capture import Residuals, adapter_active, residuals
from deltasae_ray.models.load import backbone, blocks
from deltasae_ray.sae.identity import BASE


@dataclass(frozen=True)
class Split:
    """The two parts of an adapter's deltas, at residual hookpoints; they add up to the delta."""

    propagated: Residuals
    """What the base's block makes of the change that was there before it."""
    injected: Residuals
    """What the block's own adapted modules add."""


@torch.no_grad()
def split_deltas(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoints: Sequence[Hookpoint],
    adapter: str,
) -> Split:
    """Two passes, and each hookpoint's block once more without the adapter on the adapted pass's input."""
    assert all(h.site == "resid_post" for h in hookpoints), "a block is split where it ends"
    base = residuals(model, input_ids, hookpoints)
    adapted: Residuals = {}
    unadapted: Residuals = {}

    def run_again(hookpoint: Hookpoint):
        def run(
            block: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Tensor | tuple[Tensor, ...],
        ) -> None:
            adapted[hookpoint] = _first(output)
            with adapter_active(model, BASE):
                unadapted[hookpoint] = _first(block.forward(*args, **kwargs))

        return run

    with ExitStack() as exits:
        for h in hookpoints:
            exits.callback(
                blocks(model)[h.layer].register_forward_hook(run_again(h), with_kwargs=True).remove
            )
        exits.enter_context(adapter_active(model, adapter))
        backbone(model)(input_ids=input_ids, use_cache=False)
    return Split(
        propagated={h: unadapted[h] - base[h] for h in hookpoints},
        injected={h: adapted[h] - unadapted[h] for h in hookpoints},
    )


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
