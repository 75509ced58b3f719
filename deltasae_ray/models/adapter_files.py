"""An adapter's two files: what its config may say, what its tensors are, and the digest that both have together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.replaced import Replacements
from deltasae_ray.storage import digest, file_sha256

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the base model's own names."""
_MUTATING = ("pissa", "olora", "corda", "loftq", "orthogonal", "lora_ga", "mica")
"""Initialisations that change the base's weights, or that PEFT repeats on loading: the base would no longer be the base."""
_UNSUPPORTED = (
    "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora",
    "arrow_config", "monteclora_config", "kasa_config", "velora_config", "ensure_weight_tying",
)  # fmt: skip
"""Settings that this program has no exact path for, when set."""


def read_config(folder: Path, *, weights: bool = True) -> dict[str, Any]:
    """The adapter's config, if its effect can be turned off exactly.

    Args:
        weights: also ask for the file that holds them.

    Raises:
        AdapterError: no LoRA adapter in safetensors, or one whose base cannot be had back exactly.
    """
    if not (folder / CONFIG).is_file() or weights and not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"{folder} holds no {CONFIG} with {WEIGHTS}: save the adapter with PEFT's save_pretrained (pickles are never read)"
        )
    config = json.loads((folder / CONFIG).read_text())
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder} is a {config.get('peft_type')} adapter: only LoRA is supported")
    if str(config.get("init_lora_weights")).lower().startswith(_MUTATING):
        raise AdapterError(
            f"{folder} sets init_lora_weights={config['init_lora_weights']!r}: it belongs to an altered base, its deltas would be "
            "silently wrong. Save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter"
        )
    if found := [name for name in _UNSUPPORTED if config.get(name)]:
        raise AdapterError(f"{folder} sets {found[0]}={config[found[0]]!r}, which is not supported: its deltas would be silently wrong")
    return config


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the low-rank products alone, without magnitudes, biases and trained modules."""
    return config | {"use_dora": False, "bias": "none", "modules_to_save": None, "lora_bias": False}


def replacements(tensors: Mapping[str, torch.Tensor]) -> Replacements:
    """The tensors that stand in place of base parameters: trained biases and `modules_to_save`."""
    return {
        name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", "."): tensor
        for name, tensor in tensors.items()
        if ".lora_" not in name
    }


def content_digest(folder: Path) -> str:
    """Digest of the weights and of the config without the base model's path."""
    config = json.loads((folder / CONFIG).read_text())
    telling = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layers_to_transform", "layers_pattern")
    facts = {name: config.get(name) for name in telling}
    targets = config.get("target_modules")
    facts["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
    # only where they are set, so that plain adapters keep the digests they have
    facts |= {name: config[name] for name in ("use_dora", "lora_bias", "modules_to_save") if config.get(name)}
    return digest({"config": facts, "weights": file_sha256(folder / WEIGHTS)})
