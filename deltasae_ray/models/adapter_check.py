"""Checks an adapter's tensors against the modules of the model that it is to change."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_files import (
    PREFIX,
    WEIGHTS,
    base_name,
    lora_path,
    read_config,
    read_tensors,
    replacements,
)
from deltasae_ray.models.base_copies import without_copies
from deltasae_ray.models.expected import check_whole, example, expected_shapes
from deltasae_ray.models.replaced import Replacements

log = logging.getLogger(__name__)


def check_adapter(
    folder: Path, model: nn.Module, *, base: str = ""
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Checks an adapter against a model's modules (a model without weights will do).

    Returns:
        Its config, and its tensors by PEFT's keys, but for copies of base parameters that equal the base's:
        PEFT may save them beside an adapter, and they are no change.

    Raises:
        AdapterError: modules the model has not, tensors of another shape, too few or too many, NaN, or
            weights that change nothing.
    """
    config = read_config(folder)
    named = config.get("base_model_name_or_path")
    if base and named and Path(named).name != Path(base).name:
        log.warning("%s says it was trained on %s; it is applied to %s", folder, named, base)
    tensors = without_copies(read_tensors(folder), model)
    values, head = replacements(tensors), _head(model)
    if head and any(
        head == name or head.endswith(f".{name}") for name in config.get("modules_to_save") or ()
    ):
        raise AdapterError(_HEAD.format(folder=folder, name=head))
    _check_replacements(folder, values, model, head)
    modules = dict(model.named_modules())
    moves = bool(values)
    for key, tensor in tensors.items():
        path, factor = lora_path(key), key.rpartition(".lora_")[2]
        if path is None:
            continue
        path = path.removeprefix(PREFIX)
        if path not in modules:
            raise AdapterError(
                f"{folder}: {key} targets no module of this model, whose modules are named like"
                f" {example(model)}: it was trained on another model, or on this one in a wrapper"
                " (torch.compile, FSDP, AutoModel, a multimodal model). For the latter rename the keys, so"
                f" that after {PREFIX!r} they name modules as this model does"
            )
        if path == head:
            raise AdapterError(_HEAD.format(folder=folder, name=path))
        _check_shape(folder, key, tensor, path, modules[path])
        moves |= factor.startswith(("B", "embedding_B")) and bool(tensor.any())
    check_whole(folder, tensors, expected_shapes(folder, model))
    if missing := [
        name
        for name in _saved_modules(config, model, head)
        if name not in values and name not in _names(folder)
    ]:
        raise AdapterError(
            f"{folder} has no tensor for {missing[0]}, which its config asks for (modules_to_save): was it"
            " saved whole?"
        )
    if not moves:
        raise AdapterError(f"{folder} changes nothing: every lora_B is zero. Was it saved before training?")
    return config, tensors


def _check_shape(folder: Path, key: str, tensor: torch.Tensor, path: str, module: nn.Module) -> None:
    wanted, factor = _features(module), key.rpartition(".lora_")[2]
    if (
        not factor.startswith(("A", "B", "embedding_A", "embedding_B"))
        or factor.endswith("bias")
        or wanted is None
    ):
        return
    if tensor.ndim != 2:
        raise AdapterError(
            f"{folder}: {key} has shape {tuple(tensor.shape)}; a LoRA factor has two dimensions"
        )
    got, there = (
        (tensor.shape[1], wanted[0]) if "A" in factor.partition(".")[0] else (tensor.shape[0], wanted[1])
    )
    if isinstance(module, nn.Embedding) and got != there and "A" in factor.partition(".")[0]:
        raise AdapterError(_resized(folder, key, got, there))
    if got != there:
        raise AdapterError(
            f"{folder}: {key} has shape {tuple(tensor.shape)}, but {path} maps {wanted[0]} to {wanted[1]}: "
            "made for another model"
        )


def _saved_modules(config: dict[str, Any], model: nn.Module, head: str | None) -> list[str]:
    """Parameters of the modules that the config says were trained whole, but for the head, which is not
    kept."""
    names = tuple(config.get("modules_to_save") or ())
    return [
        f"{path}.{leaf}"
        for path, module in model.named_modules()
        if path != head and any(path == name or path.endswith(f".{name}") for name in names)
        for leaf, _ in module.named_parameters()
    ]


def _names(folder: Path) -> set[str]:
    """Base parameters that the file holds values of."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {base_name(key) for key in file.keys()}  # noqa: SIM118 - no dict


def _resized(folder: Path, name: str, rows: int, there: int) -> str:
    return (
        f"{folder}: {name} has {rows} rows, the model's vocabulary {there}: the adapter was trained after "
        "the vocabulary was resized. Resize "
        f"the base likewise (model.resize_token_embeddings({rows}), then save_pretrained, with the adapter's "
        "tokenizer beside it) and give "
        "that folder as model.base"
    )


_HEAD = (
    "{folder} changes the language-model head ({name}): no residual stream shows that, and the behaviour gate"
    " scores all sources with one head. Train the adapter without it"
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
        ends: Iterable[Any] = (
            getattr(model, f"get_{which}_embeddings", lambda: None)() for which in ("input", "output")
        )
        wanted, vocabulary = (
            parameters[name].shape,
            {id(end.weight) for end in ends if end is not None and hasattr(end, "weight")},
        )
        if (
            id(parameters[name]) in vocabulary
            and value.ndim == 2
            and value.shape[1:] == wanted[1:]
            and value.shape != wanted
        ):
            raise AdapterError(_resized(folder, name, value.shape[0], wanted[0]))
        if parameters[name].shape != value.shape:
            raise AdapterError(
                f"{folder}: {name} has shape {tuple(value.shape)}, the model's has"
                f" {tuple(parameters[name].shape)}: made for another model"
            )
        if name.rpartition(".")[0] == head:
            raise AdapterError(_HEAD.format(folder=folder, name=name))


def _features(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if type(module).__name__ == "Conv1D":  # GPT-2 keeps its weights transposed
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        return weight.shape[0], weight.shape[1]
    return None
