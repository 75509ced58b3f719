"""The names that PEFT knows adapters by: its own grammar reads names as parts of keys and attributes, so
users' names never reach it."""

from itertools import count

from torch import nn

_NAMES = "peft_names"


def peft_name(model: nn.Module, adapter: str) -> str:
    """The name inside PEFT of an adapter that `attach` attached; of a model that came with its adapters, the
    name itself."""
    return getattr(model, _NAMES, {}).get(adapter, adapter)


def new_peft_name(model: nn.Module) -> str:
    """A name (a0, a1, …) that no adapter and no part of the model has yet."""
    taken = {part for name, _ in model.named_modules() for part in name.split(".")} | set(
        getattr(model, _NAMES, {}).values()
    )
    return next(name for name in (f"a{i}" for i in count()) if name not in taken)


def keep_peft_name(model: nn.Module, adapter: str, name: str) -> None:
    """Notes that PEFT calls the adapter `name`."""
    setattr(model, _NAMES, {**getattr(model, _NAMES, {}), adapter: name})


def adapters_of(model: nn.Module) -> list[str]:
    """The names of a model's adapters as users know them, sorted."""
    users = {inner: name for name, inner in getattr(model, _NAMES, {}).items()}
    return sorted(users.get(name, name) for name in getattr(model, "peft_config", {}))
