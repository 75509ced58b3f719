"""Weights that are held in a narrow type and used in a wider one: each module casts its own while its forward
pass runs.

A bf16 value is an fp32 value, so a bf16 checkpoint held in bf16 gives the activations of the same checkpoint
held in fp32, bit by bit, in half the memory. Modules cast inside their own call, where ZeRO-3 has gathered
what they need.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def widen(model: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """From now on forward passes use parameters and buffers that are narrower than `dtype` in it; they stay
    held as they are.

    Training keeps no wide weight for the backward pass, which casts it again.

    Returns:
        What ends it.
    """
    ends = [
        replace_forward(module, _wide_forward(module, dtype))
        for module in model.modules()
        if any(
            _narrower(t, dtype)
            for holder in _holders(module)
            for kind in _kinds(holder)
            for t in kind.values()
        )
    ]

    def end() -> None:
        for each in ends:
            each()

    return end


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """From now on the module's own forward pass is `forward`; its hooks stay. Returns what ends it; may be
    nested."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward

    def end() -> None:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before

    return end


def is_linear(module: nn.Module) -> bool:
    """Whether the module is one matrix product; GPT-2's Conv1D keeps its weight as [in, out]."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _wide_forward(module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _wide(module, dtype):
            return own(*args, **kwargs)

    def product(x: Tensor) -> Tensor:
        return (
            _Product.apply(x, module, forward) if x.requires_grad and torch.is_grad_enabled() else forward(x)
        )  # type: ignore[return-value]

    def rows(ids: Tensor) -> Tensor:
        weight: Any = module._parameters["weight"]
        if not _narrower(weight, dtype):
            return own(ids)
        # only the rows that are looked up: a whole vocabulary in fp32 may be larger than every block
        padding, module.padding_idx = module.padding_idx, None  # type: ignore[assignment]
        module._parameters["weight"] = nn.Parameter(weight[ids.flatten()], requires_grad=False)
        try:
            return forward(torch.arange(ids.numel(), device=ids.device).view_as(ids))
        finally:
            module._parameters["weight"], module.padding_idx = weight, padding  # type: ignore[assignment]

    if isinstance(module, nn.Embedding):
        return rows
    return product if is_linear(module) else forward


class _Product(torch.autograd.Function):
    """A product with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.module = module
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), weight = grads, ctx.module.weight.to(grads[0].dtype)
        return grad @ (weight if isinstance(ctx.module, nn.Linear) else weight.T), None, None


@contextmanager
def _wide(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    held = [
        (kind, name, t)
        for holder in _holders(module)
        for kind in _kinds(holder)
        for name, t in kind.items()
        if _narrower(t, dtype)
    ]
    for kind, name, t in held:
        wide = t.detach().to(dtype)
        kind[name] = nn.Parameter(wide, requires_grad=False) if isinstance(t, nn.Parameter) else wide
    try:
        yield
    finally:
        for kind, name, t in held:
            kind[name] = t


def _holders(module: nn.Module) -> list[nn.Module]:
    """The module, and the containers of tensors that it reads itself since nobody calls them."""
    return [
        module,
        *(child for child in module.children() if isinstance(child, nn.ParameterDict | nn.ParameterList)),
    ]


def _kinds(holder: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return holder._parameters, holder._buffers


def _narrower(tensor: Tensor | None, dtype: torch.dtype) -> bool:
    return tensor is not None and tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize
