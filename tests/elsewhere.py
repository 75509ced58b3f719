"""A device that is not the CPU, on a machine that has no other: a tensor left on the CPU is an error beside
tensors that lie there.

`faked` is torch's own FakeTensorMode on the device `meta`: shapes and devices, no numbers. Code that branches
on numbers cannot run in it, so `pretended` keeps the numbers of each such tensor beside it, computes with
them on the CPU, and refuses what a GPU would refuse.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
_aten = torch.ops.aten
_MOVING = {_aten._to_copy.default, _aten.copy_.default, _aten.set_.source_Tensor}
_INDEXING = {
    _aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}  # fmt: skip
"""Whose indices may lie on the CPU, on GPUs too."""


@contextmanager
def faked() -> Iterator[None]:
    """Inside, tensors have shapes and devices only; models that were moved to `meta` run."""
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        yield


class Elsewhere(Tensor):
    """A tensor that lies on the other device; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        lies = (
            {"strides": held.stride(), "storage_offset": held.storage_offset()}
            if held.layout is torch.strided
            else {}
        )
        made = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=DEVICE, **lies)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch builds below its dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (
            func in (torch.tensor, torch.as_tensor)
            and kwargs.get("device") is not None
            and not isinstance(args[0], Elsewhere)
        ):
            there = torch.device(kwargs.pop("device")).type == DEVICE
            made = func(*args, **kwargs)
            return Elsewhere(made) if there and not isinstance(made, Elsewhere) else made
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if func is Tensor.tolist and isinstance(
            args[0], Elsewhere
        ):  # waits for the device and copies, on a GPU
            return args[0].held.tolist()
        if func is Tensor.data.__set__ and isinstance(args[0], Elsewhere):  # type: ignore[attr-defined]
            assert isinstance(args[1], Elsewhere), (
                "a tensor on the CPU becomes the numbers of one that is not"
            )
            args[0].held = args[1].held
            return None
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[None]:
    """Inside, tensors on `meta` have numbers."""
    with _Functions(), _Dispatch():
        yield


def moved(model: nn.Module) -> nn.Module:
    """The model with its parameters and buffers on the other device, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    Elsewhere(parameter.data), requires_grad=parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def there(tensor: Tensor) -> Tensor:
    """A copy on the other device."""
    return Elsewhere(tensor.detach().clone())


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    anywhere = any(isinstance(x, Elsewhere) for x in leaves)
    device = kwargs.get("device")
    target = (
        DEVICE
        if device is not None and torch.device(device).type == DEVICE
        else "cpu"
        if device is not None
        else ""
    )
    if anywhere and func not in _MOVING:
        checked = tree_leaves((args[0], args[2:])) if func in _INDEXING else leaves
        if left := [x for x in checked if isinstance(x, Tensor) and not isinstance(x, Elsewhere) and x.ndim]:
            raise RuntimeError(
                f"{func}: Expected all tensors to be on the same device, but found one of shape"
                f" {tuple(left[0].shape)} on the CPU"
            )
    if target:
        kwargs = {**kwargs, "device": "cpu"}
    held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    found = func(*held_args, **held_kwargs)
    if func is _aten.copy_.default:
        return args[0]
    if not (target == DEVICE or (anywhere and target != "cpu")):
        return found
    own = {id(x.held): x for x in leaves if isinstance(x, Elsewhere)}
    return tree_map(
        lambda x: (own[id(x)] if id(x) in own else Elsewhere(x)) if isinstance(x, Tensor) else x, found
    )
