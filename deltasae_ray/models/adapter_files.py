"""An adapter's two files: what its config may say, what its tensors are, and the digest that both have
together."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_config import parse_config
from deltasae_ray.models.replaced import Replacements
from deltasae_ray.models.weight_files import check_weights
from deltasae_ray.storage import digest, file_sha256

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the base model's own names."""
_FACTOR = re.compile(r"(.+)\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.[^.]+)*", re.DOTALL)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_config(folder: Path, *, weights: bool = True) -> dict[str, Any]:
    """The adapter's config, if its effect can be turned off exactly.

    Args:
        weights: also ask for the file that holds them.

    Raises:
        AdapterError: no LoRA adapter in safetensors, a field that says what it may not, or a base that cannot
            be had back exactly.
    """
    if not (folder / CONFIG).is_file() or weights and not (folder / WEIGHTS).is_file():
        raise AdapterError(f"{folder} holds no {CONFIG} with {WEIGHTS}: {_instead(folder)}")
    return parse_config(folder / CONFIG)


def _instead(folder: Path) -> str:
    below = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("*/" + CONFIG))
    if below:
        return f"adapters lie below it, give one of them, such as {folder / below[-1]}"
    if (folder / "adapter_model.bin").is_file():
        return (
            "adapter_model.bin is a pickle, which is never read. Load the adapter with PEFT where you trust"
            " it, and save it again with save_pretrained, which writes safetensors"
        )
    if (folder / "config.json").is_file():
        return "it looks like a whole model. Give it as model.base, or the adapter before it was merged"
    return "save the adapter with PEFT's save_pretrained (pickles are never read)"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the names that PEFT's save_pretrained gives them.

    A key that still holds PEFT's default adapter name (`….lora_A.default.weight`) means what PEFT takes it
    for: the key without it.

    Raises:
        AdapterError: a file that is not whole, a key that PEFT would not read, or a tensor that is no finite
            floating point.
    """
    path = folder / WEIGHTS
    check_weights(path, AdapterError)
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(path).items():
        if not key.startswith(PREFIX):
            raise AdapterError(
                f"{path}: the key {key!r} does not begin with {PREFIX!r}, so PEFT would leave its tensor out "
                "without a word. Save the adapter "
                f"with PEFT's save_pretrained, or put {PREFIX!r} before every key"
            )
        name = plain_key(key)
        if name in tensors:
            raise AdapterError(
                f"{path} holds {name!r} twice, with and without the adapter's name in its key: remove one of"
                " them"
            )
        if tensor.dtype not in _DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise AdapterError(f"{path}: {key!r} holds {dtype}; float32, float16 or bfloat16 belong there")
        if not torch.isfinite(tensor).all():
            raise AdapterError(
                f"{path}: {key!r} holds NaN or infinity: the training diverged, or the file is damaged"
            )
        tensors[name] = tensor
    if not tensors:
        raise AdapterError(
            f"{path} holds no tensors: was the adapter saved before it was attached, or by a rank that held"
            " none?"
        )
    return tensors


def plain_key(key: str, adapter: str = "default") -> str:
    """A LoRA tensor's key without the adapter's name; other keys as they are."""
    path = lora_path(key)
    if path is None:
        return key
    kind, *rest = key.removeprefix(f"{path}.").split(".")
    rest = rest[1:] if rest[:1] == [adapter] else rest
    # files call a magnitude `lora_magnitude_vector`, models `lora_magnitude_vector.weight`
    return ".".join(
        [path, kind] if kind == "lora_magnitude_vector" and rest == ["weight"] else [path, kind, *rest]
    )


def lora_path(key: str) -> str | None:
    """The module that a LoRA tensor belongs to; None for tensors that stand in place of the base's."""
    match = _FACTOR.fullmatch(key)
    return match[1] if match else None


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the low-rank products alone, without magnitudes, biases and trained modules."""
    return config | {"use_dora": False, "bias": "none", "modules_to_save": None, "lora_bias": False}


def base_name(key: str) -> str:
    """A key as the base model calls the parameter, before PEFT wraps anything."""
    return key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def replacements(tensors: Mapping[str, torch.Tensor]) -> Replacements:
    """The tensors that stand in place of base parameters: trained biases and `modules_to_save`."""
    return {base_name(key): tensor for key, tensor in tensors.items() if lora_path(key) is None}


def weights_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file as PEFT writes it."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})


def content_digest(folder: Path, weights: bytes | None = None) -> str:
    """Digest of the weights and of the config without the base model's path.

    Args:
        weights: the file's content, where it is to be another than the folder's.
    """
    config = parse_config(folder / CONFIG)
    telling = (
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "layers_to_transform",
        "layers_pattern",
    )
    facts = {name: config.get(name) for name in telling}
    targets = config.get("target_modules")
    facts["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
    # only where they are set, so that plain adapters keep the digests they have
    facts |= {name: config[name] for name in ("use_dora", "lora_bias", "modules_to_save") if config.get(name)}
    content = file_sha256(folder / WEIGHTS) if weights is None else hashlib.sha256(weights).hexdigest()
    return digest({"config": facts, "weights": content})
