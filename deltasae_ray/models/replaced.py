"""Base parameters that an adapter brings its own values of: trained biases and `modules_to_save`.

PEFT writes trained biases over the base's, so that switching the adapter off does not give the base back.
Here both sets of values are kept, and an adapter's stand in the model only while it is active: the base stays
the base, bit by bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from deltasae_ray.models.load import base_of

Replacements = dict[str, Tensor]
"""Parameter of the base model, by its name before PEFT wraps anything → the value that an adapter gives it,
used in fp32."""
_Slot = tuple[nn.Module, str]
_KEPT = "replaced_by_adapter"
_OF_BASE = None


def keep_replacements(model: nn.Module, adapter: str, values: Replacements) -> None:
    """Notes an adapter's values of base parameters; those of blocks that were cut off are left out.

    Args:
        model: with the adapter attached, on its device.
    """
    slots = _slots(model)
    kept = _kept(model)
    for name in sorted(
        values.keys() & slots.keys()
    ):  # one order on every rank: sharding numbers them as they come
        module, leaf = slots[name]
        base: Any = module._parameters[leaf]
        kept.setdefault(_OF_BASE, {})[module, leaf] = base
        kept.setdefault(adapter, {})[module, leaf] = nn.Parameter(
            values[name].to(base.device).float(), requires_grad=False
        )
    setattr(model, _KEPT, kept)


def replaces(model: nn.Module, adapter: str) -> bool:
    """Whether the adapter brings values of base parameters."""
    return adapter in _kept(model)


def replacing(model: nn.Module) -> list[nn.Parameter]:
    """All values that adapters bring, which are no parameters of the model's modules."""
    return [
        value
        for adapter, values in _kept(model).items()
        if adapter is not _OF_BASE
        for value in values.values()
    ]


@contextmanager
def replaced(model: nn.Module, adapter: str | None = _OF_BASE) -> Iterator[None]:
    """Inside, the adapter's values (None: the base's own) stand in the model; may be nested.

    A parameter that two modules share is replaced in the named one only.
    """
    before = {}
    try:
        for (module, leaf), value in _kept(model).get(adapter, {}).items():
            before[module, leaf] = module._parameters[leaf]
            module._parameters[leaf] = value
        yield
    finally:
        for (module, leaf), value in before.items():
            module._parameters[leaf] = value


def _kept(model: nn.Module) -> dict[str | None, dict[_Slot, nn.Parameter]]:
    return getattr(model, _KEPT, {})


def _slots(model: nn.Module) -> dict[str, _Slot]:
    """Name of a base parameter → the module that holds it, and its name there."""
    slots = {}
    for path, module in base_of(model).named_modules():
        for leaf in module._parameters:
            slots[f"{path}.{leaf}".replace(".base_layer.", ".")] = (module, leaf)
    return slots
