"""What a block itself adds to a delta, and what it passes on; and each adapted module's own change in its low-rank coordinates.

δ = [F_b(h_a) − F_b(h_b)] propagated + [F_a(h_a) − F_b(h_a)] injected, F the block, a adapted, b base: an identity (science: deltas).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.capture import BASE, Residuals, adapter_active, residuals
from deltasae_ray.models.load import backbone, base_of, blocks


@dataclass(frozen=True)
class Split:
    """The two parts of an adapter's deltas, at residual hookpoints; they add up to the delta."""

    propagated: Residuals
    """What the base's block makes of the change that was there before it."""
    injected: Residuals
    """What the block's own adapted modules add."""


@torch.no_grad()
def split_deltas(model: nn.Module, input_ids: Int[Tensor, "context position"], hookpoints: Sequence[Hookpoint], adapter: str) -> Split:
    """Two passes, and each hookpoint's block once more without the adapter on the adapted pass's input."""
    assert all(h.site == "resid_post" for h in hookpoints), "a block is split where it ends"
    base = residuals(model, input_ids, hookpoints)
    adapted: Residuals = {}
    unadapted: Residuals = {}

    def run_again(hookpoint: Hookpoint):
        def run(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | tuple[Tensor, ...]) -> None:
            adapted[hookpoint] = _first(output)
            with adapter_active(model, BASE):
                unadapted[hookpoint] = _first(block.forward(*args, **kwargs))

        return run

    with ExitStack() as exits:
        for h in hookpoints:
            exits.callback(blocks(model)[h.layer].register_forward_hook(run_again(h), with_kwargs=True).remove)
        exits.enter_context(adapter_active(model, adapter))
        backbone(model)(input_ids=input_ids, use_cache=False)
    return Split(
        propagated={h: unadapted[h] - base[h] for h in hookpoints}, injected={h: adapted[h] - unadapted[h] for h in hookpoints}
    )


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class ModuleDelta:
    """The change s·B·A·u that one adapted linear module makes to its own output, in low-rank coordinates: nothing is subtracted."""

    coordinates: Float[Tensor, "context position rank"]
    """s·A·u, u the module's input in the adapted pass."""
    writer: Float[Tensor, "out rank"]
    """B: the change is coordinates @ writer.T."""

    @property
    def change(self) -> Float[Tensor, "context position out"]:
        return self.coordinates @ self.writer.T


@torch.no_grad()
def module_deltas(model: nn.Module, input_ids: Int[Tensor, "context position"], adapter: str) -> dict[str, ModuleDelta]:
    """The local change of every linear module that a plain LoRA adapter adapts, by the module's name in the base model.

    In a model where one adapted module alone writes straight to the residual stream, its change is the delta; wherever a norm or
    another adapted module stands before that, it is not (`load.has_post_norm`).

    Args:
        model: as `peft.PeftModel.from_pretrained` gives it, whole on its device; its parameters' precision is that of the coordinates.

    Raises:
        AdapterError: the model has no such adapter, or it adapts no linear module by plain LoRA (DoRA scales the base's weights too).
    """
    if adapter not in getattr(model, "peft_config", {}):
        raise AdapterError(f"the model has no adapter {adapter!r}: it has {sorted(getattr(model, 'peft_config', {}))}")
    found: dict[str, ModuleDelta] = {}

    def reader(name: str):
        def read(layer: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            coordinates = layer.lora_A[adapter](inputs[0]) * layer.scaling[adapter]
            found[name] = ModuleDelta(coordinates, layer.lora_B[adapter].weight.to(coordinates.dtype, copy=True))

        return read

    with ExitStack() as exits:
        for name, layer in base_of(model).named_modules():
            if adapter in getattr(layer, "lora_A", {}) and adapter not in getattr(layer, "lora_variant", {}):
                exits.callback(layer.register_forward_hook(reader(name)).remove)
        exits.enter_context(adapter_active(model, adapter))
        backbone(model)(input_ids=input_ids, use_cache=False)
    if not found:
        raise AdapterError(f"adapter {adapter!r} adapts no linear module by plain LoRA: its change has no low-rank coordinates")
    return found
