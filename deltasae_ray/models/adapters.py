"""LoRA adapters: read from a folder, checked against the model before any long work, kept in the storage under their content."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_files import CONFIG, PREFIX, WEIGHTS, content_digest, read_config, replacements
from deltasae_ray.models.replaced import Replacements, keep_replacements
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)

@dataclass(frozen=True)
class AdapterRef:
    """An adapter that lies in the storage."""

    name: str
    key: str
    """Folder below the storage root."""
    digest: str
    """Of its weights and of what its config says about them; never of paths."""
    rank: int
    alpha: float
    seed: int | None = None
    """Training seed, where known."""
    kind: Literal["adapter", "random"] = "adapter"
    """"adapter", or "random" for the control."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is known of its training: steps, tokens, losses."""


def check_adapter(folder: Path, model: nn.Module, *, base: str = "") -> dict[str, Any]:
    """Checks an adapter against a model's modules (a model without weights will do) and returns its config.

    Raises:
        AdapterError: modules the model has not, tensors of another shape, NaN, or weights that change nothing.
    """
    config = read_config(folder)
    named = config.get("base_model_name_or_path")
    if base and named and Path(str(named)).name != Path(base).name:
        log.warning("%s says it was trained on %s; it is applied to %s", folder, named, base)
    tensors = load_file(folder / WEIGHTS)
    if not tensors:
        raise AdapterError(f"{folder}/{WEIGHTS} holds no tensors")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{folder}: {key} holds NaN or infinity")
    values, head = replacements(tensors), _head(model)
    _check_replacements(folder, values, model, head)
    modules = dict(model.named_modules())
    moves = bool(values)
    for key, tensor in ((k, t) for k, t in tensors.items() if ".lora_" in k):
        path, _, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        if not path or path not in modules:
            raise AdapterError(f"{folder}: {key} targets no module of this model; its modules are named like {_example(modules)}")
        if path == head:
            raise AdapterError(_HEAD.format(folder=folder, name=path))
        wanted = _features(modules[path])
        got = (tensor.shape[1], None) if factor.startswith(("A", "embedding_A")) else (None, tensor.shape[0])
        if wanted and any(g is not None and g != w for g, w in zip(got, wanted, strict=True)):
            raise AdapterError(
                f"{folder}: {key} has shape {tuple(tensor.shape)}, but {path} maps {wanted[0]} to {wanted[1]}: made for another model"
            )
        moves |= factor.startswith(("B", "embedding_B")) and bool(tensor.any())
    if not moves:
        raise AdapterError(f"{folder} changes nothing: every lora_B is zero. Was it saved before training?")
    return config


_HEAD = (
    "{folder} changes the language-model head ({name}): no residual stream shows that, and the behaviour gate scores all sources with one "
    "head. Train the adapter without it"
)


def _head(model: nn.Module) -> str | None:
    """Name of the language-model head's module."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if head is not None and module is head), None)


def _check_replacements(folder: Path, values: Replacements, model: nn.Module, head: str | None) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in values.items():
        if name not in parameters:
            raise AdapterError(f"{folder}: {name} is no parameter of this model")
        if parameters[name].shape != value.shape:
            raise AdapterError(
                f"{folder}: {name} has shape {tuple(value.shape)}, the model's has {tuple(parameters[name].shape)}: made for another model"
            )
        if name.rpartition(".")[0] == head:
            raise AdapterError(_HEAD.format(folder=folder, name=name))


def _features(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # GPT-2 keeps its weights transposed
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        return weight.shape[0], weight.shape[1]
    return None


def _example(modules: dict[str, nn.Module]) -> str:
    return next((name for name, module in modules.items() if _features(module) and "layer" in name or ".h." in name), "?")


_TAKEN = ("base", "random")


def import_adapter(storage: Storage, folder: Path, name: str, model: nn.Module, *, base: str = "", copy: bool = True) -> AdapterRef:
    """Checks a user's adapter and copies it into the storage, where every node finds it.

    Args:
        copy: False for a plan: it is checked and named, and nothing is written.

    Raises:
        AdapterError: see `check_adapter`; or a name that stands for something else.
    """
    name = name.replace(".", "-")  # torch names no module with a dot
    if name in _TAKEN:
        raise AdapterError(f"{folder}: an adapter cannot be called {name!r}, which names another source: rename the folder")
    config = check_adapter(folder, model, base=base)
    content = content_digest(folder)
    key = f"adapters/{content}"
    for file in (CONFIG, WEIGHTS) if copy else ():
        if not storage.exists(f"{key}/{file}"):
            storage.write_bytes(f"{key}/{file}", (folder / file).read_bytes())
    return AdapterRef(name, key, content, rank=int(config["r"]), alpha=float(config["lora_alpha"]))


def attach(model: nn.Module, adapters: Mapping[str, Path]) -> nn.Module:
    """The model with all adapters (name → folder) loaded, none merged, frozen; weights for blocks that were cut off are left out.

    Returns:
        A PeftModel, or the model itself when there are no adapters.
    """
    from peft import LoraConfig, get_peft_model

    peft_model: Any = None
    for name, folder in adapters.items():
        config: Any = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        config.bias, config.modules_to_save = "none", None  # held by `replaced`: PEFT would write biases over the base's
        try:
            if peft_model is None:
                peft_model = get_peft_model(model, config, adapter_name=name)  # type: ignore[arg-type]
            else:
                peft_model.add_adapter(name, config)
        except ValueError as e:  # PEFT's word for: no module matches; blocks after the deepest hookpoint were cut off
            raise AdapterError(
                f"adapter {name} changes nothing at layers this shallow, none of its modules is there: choose deeper layers ({e})"
            ) from e
        _load(peft_model, name, folder)
    return model if peft_model is None else peft_model.requires_grad_(False).eval()


def _load(peft_model: Any, name: str, folder: Path) -> None:
    """Puts an adapter's tensors where PEFT made room for them.

    Raises:
        AdapterError: room is left over, which would keep what PEFT drew at random.
    """
    from peft.utils import set_peft_model_state_dict

    tensors = load_file(folder / WEIGHTS)
    rooms = set()
    for parameter, _ in peft_model.named_parameters():
        path, found, factor = parameter.rpartition(".lora_")  # an adapter may be called like a module, so only what follows is searched
        kind, _, rest = factor.partition(".")
        if found and rest.split(".")[0] == name:
            rooms.add(".".join([f"{path}.lora_{kind}", *rest.split(".")[1:]]))
    # a file calls a magnitude `lora_magnitude_vector`, a model `lora_magnitude_vector.weight`
    here = {key: tensor for key, tensor in tensors.items() if key in rooms or f"{key}.weight" in rooms}
    if empty := {r for r in rooms if r not in here and r.removesuffix(".weight") not in here}:
        raise AdapterError(f"{folder} has no tensor for {sorted(empty)[0]}, which its config asks for: was it saved whole?")
    set_peft_model_state_dict(peft_model, here, adapter_name=name)
    keep_replacements(peft_model, name, replacements(tensors))


def fetch(storage: Storage, adapters: Iterable[AdapterRef], scratch: Path) -> dict[str, Path]:
    """Adapter name → local folder; copied below `scratch` from an object store."""
    return {ref.name: storage.get_folder(ref.key, scratch / ref.name) for ref in adapters}
