"""A model in another state for the time of a call, and afterwards as it was handed over."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_OF_ADAPTERS = ("_active_adapter", "_disable_adapters", "_adapters_disabled", "active_adapter")


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Inside, the whole model is in evaluation mode, and may be switched between adapters.

    Afterwards, also after an error, every module has the mode, the active adapters and the gradients that it
    had.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    switches = [
        (module, name, _copied(vars(module)[name]))
        for module in modules
        for name in _OF_ADAPTERS
        if name in vars(module)
    ]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for module, name, value in switches:
            vars(module)[name] = value
        for parameter, needed in gradients:
            if parameter.requires_grad != needed:
                parameter.requires_grad_(needed)


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
