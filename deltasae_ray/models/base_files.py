"""A base model's files, checked before anything is loaded: whole, of the base itself, and not quantised."""

import json
from pathlib import Path
from typing import Any

from deltasae_ray.errors import ModelError
from deltasae_ray.models.weight_files import base_weights, check_weights, refuse_pointer

CONFIG = "config.json"
_OBJECTS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_OTHERS = ("tokenizer.model", "merges.txt", "vocab.txt", "chat_template.jinja")


def check_base(folder: Path, *, weights: bool, given: bool = True) -> dict[str, Any]:
    """Checks a model's folder, and returns its config.

    Args:
        weights: also ask for the weights; where they are there, they are checked in any case.
        given: the folder is the user's own; False for one of the hub's cache, into which the rest is
            downloaded later.

    Raises:
        ModelError: names the file, what is wrong with it and what to do.
    """
    weights_found = base_weights(folder, ModelError)
    if (
        weights
        and not (weights_found or any(folder.glob("*.safetensors")))
        or not (folder / CONFIG).is_file()
    ):
        raise ModelError(
            f"{folder} holds no config.json with safetensors weights: save the model with save_pretrained"
        )
    config = read_object(folder / CONFIG)
    _refuse_quantised(folder, config)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter_config.json, so that transformers would load the adapter on its own "
            "base from there: give it "
            "as adapters=[...] and the base as model.base, or move that file away if this is a whole model"
        )
    if weights and not weights_found:
        raise ModelError(
            f"{folder} holds no model.safetensors and no model.safetensors.index.json: save the model with"
            " save_pretrained"
        )
    there = [path for path in weights_found if path.exists()]
    for path in weights_found if weights or (given and there) else there:
        check_weights(path, ModelError)
    return config


def check_texts(folder: Path) -> None:
    """Checks the files of a tokenizer and of configs, as far as they are there.

    Raises:
        ModelError: one is a pointer, empty, cut off or something else.
    """
    for path in (folder / name for name in (*_OBJECTS, *_OTHERS)):
        if path.is_file():
            read_object(path) if path.suffix == ".json" else refuse_pointer(path, ModelError)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        ModelError: it is a pointer, no UTF-8, cut off, or something else.
    """
    refuse_pointer(path, ModelError)
    try:
        parsed = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as e:  # a wrong encoding is a ValueError too
        raise ModelError(
            f"{path} is not valid JSON in UTF-8 without BOM ({e}): was it cut off? Fetch it again"
        ) from e
    if not isinstance(parsed, dict):
        raise ModelError(
            f"{path} holds a JSON {type(parsed).__name__} where an object belongs: fetch it again"
        )
    return parsed


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """A quantised base is another function than its original, and its kernels do not compute in fp32."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for field in ("quantization_config", "compression_config"):
            if setting := part.get(field):
                method = (
                    setting.get("quant_method", "an unknown method") if isinstance(setting, dict) else setting
                )
                raise ModelError(
                    f"{folder / CONFIG} has {field} ({method}): deltas need weights that are not quantised. "
                    "Give the original as "
                    "model.base, or dequantise this one "
                    "(AutoModelForCausalLM.from_pretrained(...).dequantize(), then save_pretrained, "
                    "and see that the new config.json lacks that field)"
                )
