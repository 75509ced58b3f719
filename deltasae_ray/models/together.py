"""Base and adapters in one forward pass: their rows share a batch, so that sharded parameters are gathered
once for all of them.

It also makes **difference propagation** possible (`bf16=True`): every linear layer of the blocks takes
W·x_base and W·(x_adapted − x_base) in bf16 and adds them in fp32. The residual stream stays in fp32, the
rounding is relative to the delta, and the base's own rounding stands in both rows and cancels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.capture import Residuals, adapter_active, deltas, reading
from deltasae_ray.models.casts import is_linear, replace_forward
from deltasae_ray.models.load import backbone, blocks
from deltasae_ray.models.peft_names import peft_name
from deltasae_ray.models.replaced import replaces
from deltasae_ray.sae.identity import BASE


def alone(model: nn.Module, adapters: Sequence[str]) -> tuple[str, ...]:
    """The adapters that cannot share a pass: DoRA and other variants of LoRA, LoRA on embeddings, and
    replaced base parameters."""
    layers: list[Any] = _lora_layers(model)
    apart = {name for layer in layers for name in (*layer.lora_variant, *layer.lora_embedding_A)}
    return tuple(a for a in adapters if replaces(model, a) or peft_name(model, a) in apart)


@torch.no_grad()
def deltas_together(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoints: Sequence[Hookpoint],
    adapters: Sequence[str],
    *,
    bf16: bool = False,
) -> Iterator[tuple[str, Residuals]]:
    """Takes deltas as `capture.deltas` does, in one pass over (1 + adapters) times the rows.

    Args:
        adapters: none of which is to run `alone`.
        bf16: products of linear layers in bf16, by difference propagation.
    """
    count = 1 + len(adapters)
    with ExitStack() as exits:
        taken = exits.enter_context(reading(model, hookpoints))
        exits.enter_context(adapter_active(model, BASE))
        exits.enter_context(side_by_side(model, adapters))
        if bf16:
            exits.enter_context(bf16_products(model, count))
        backbone(model)(input_ids=input_ids.repeat(count, 1), use_cache=False)
    rows = {h: t.unflatten(0, (count, len(input_ids))) for h, t in taken.items()}
    yield BASE, {h: t[0] for h, t in rows.items()}
    for i, adapter in enumerate(adapters, start=1):
        yield adapter, {h: t[i] - t[0] for h, t in rows.items()}


def harvested_deltas(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoints: Sequence[Hookpoint],
    adapters: Sequence[str],
    *,
    together: bool,
    bf16: bool,
) -> Iterator[tuple[str, Residuals]]:
    """Base and deltas as a harvest takes them: one after the other, or in one pass with what cannot share it
    afterwards.

    Raises:
        AdapterError: bf16 products of an adapter that cannot share a pass.
    """
    apart = alone(model, adapters) if together or bf16 else tuple(adapters)
    if bf16 and apart:
        raise AdapterError(
            f"harvest.precision=mixed works on base and adapter in one batch, which {', '.join(apart)} (DoRA,"
            " LoRA on embeddings, trained biases or modules) cannot share: set harvest.precision=fp32, or"
            " leave them to a harvest of their own"
        )
    if together or bf16:
        yield from deltas_together(
            model, input_ids, hookpoints, [a for a in adapters if a not in apart], bf16=bf16
        )
        if not apart:
            return
    for name, taken in deltas(model, input_ids, hookpoints, apart):
        if name != BASE or not (together or bf16):
            yield name, taken


@contextmanager
def side_by_side(model: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Inside, with adapters disabled, LoRA layers add each adapter's product to its own rows, in the order of
    `adapters`.

    PEFT's own mixed batches iterate a set of names, whose order differs between processes: collectives of
    sharded parameters would not match. Here every rank goes through the adapters in one order.
    """
    names = [peft_name(model, adapter) for adapter in adapters]

    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, y = inputs[0].chunk(1 + len(adapters)), output.chunk(1 + len(adapters))
        for i, name in enumerate(names, start=1):
            if name in layer.lora_A:
                y[i].add_(layer.lora_B[name](layer.lora_A[name](x[i])), alpha=layer.scaling[name])
        return output

    with ExitStack() as exits:
        for layer in _lora_layers(model):
            exits.callback(layer.register_forward_hook(add).remove)
        yield


@contextmanager
def bf16_products(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, linear layers of the blocks multiply in bf16; rows are `count` equal parts, the base's first.

    Weights held in fp32 are rounded as they are used, so that sharded ones may be; that costs one reading of
    them per pass.
    """
    with ExitStack() as exits:
        for block in blocks(model):
            for name, module in block.named_modules():
                if ".lora_" not in name and is_linear(module):
                    exits.callback(replace_forward(module, _product(module, count)))
        yield


def _product(module: Any, count: int) -> Callable[[Tensor], Tensor]:
    transposed = not isinstance(module, nn.Linear)  # GPT-2's Conv1D keeps [in, out]

    def forward(x: Float[Tensor, "row position in"]) -> Float[Tensor, "row position out"]:
        parts = x.unflatten(0, (count, -1))
        steps = torch.empty_like(parts, dtype=torch.bfloat16)
        steps[0] = parts[0]
        for i in range(1, count):
            steps[i] = parts[i] - parts[0]
        weight = module.weight.bfloat16()
        product = nn.functional.linear(steps.flatten(0, 1), weight.T if transposed else weight).unflatten(
            0, (count, -1)
        )
        y = torch.empty_like(product, dtype=torch.float32)
        y[0] = product[0]
        for i in range(1, count):
            torch.add(y[0], product[i], out=y[i])
        y = y.flatten(0, 1)
        return y if module.bias is None else y.add_(module.bias)

    return forward


def _lora_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer)]
