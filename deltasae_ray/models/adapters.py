"""LoRA adapters: read from a folder, checked against the model before any long work, kept in the storage under their content."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.storage import Storage, digest, file_sha256

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


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


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's config, if its effect can be turned off exactly.

    Raises:
        AdapterError: no LoRA adapter in safetensors, or one whose base is not what `disable_adapter` leaves.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"{folder} holds no {CONFIG} with {WEIGHTS}: save the adapter with PEFT's save_pretrained (pickles are never read)"
        )
    config = json.loads((folder / CONFIG).read_text())
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder} is a {config.get('peft_type')} adapter: only LoRA is supported")
    for name, off in (("use_dora", (None, False)), ("bias", (None, "none")), ("modules_to_save", (None, [])), ("lora_bias", (None, False))):
        if config.get(name) not in off:
            raise AdapterError(
                f"{folder} sets {name}={config[name]!r}: switching it off does not give the base model back, so "
                "its deltas would be silently wrong"
            )
    return config


def content_digest(folder: Path) -> str:
    """Digest of the weights and of the config without the base model's path."""
    config = json.loads((folder / CONFIG).read_text())
    telling = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layers_to_transform", "layers_pattern")
    facts = {name: config.get(name) for name in telling}
    targets = config.get("target_modules")
    facts["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
    return digest({"config": facts, "weights": file_sha256(folder / WEIGHTS)})


def check_adapter(folder: Path, model: nn.Module, *, base: str = "") -> dict[str, Any]:
    """Checks an adapter against a model's modules (a model without weights will do) and returns its config.

    Raises:
        AdapterError: modules the model has not, tensors of another shape, NaN, or weights that change nothing.
    """
    config = read_config(folder)
    named = config.get("base_model_name_or_path")
    if base and named and Path(str(named)).name != Path(base).name:
        log.warning("%s says it was trained on %s; it is applied to %s", folder, named, base)
    modules = dict(model.named_modules())
    moves = False
    tensors = load_file(folder / WEIGHTS)
    if not tensors:
        raise AdapterError(f"{folder}/{WEIGHTS} holds no tensors")
    for key, tensor in tensors.items():
        path, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not path or path not in modules:
            raise AdapterError(f"{folder}: {key} targets no module of this model; its modules are named like {_example(modules)}")
        wanted = _features(modules[path])
        got = (tensor.shape[1], None) if factor.startswith(("A", "embedding_A")) else (None, tensor.shape[0])
        if wanted and any(g is not None and g != w for g, w in zip(got, wanted, strict=True)):
            raise AdapterError(
                f"{folder}: {key} has shape {tuple(tensor.shape)}, but {path} maps {wanted[0]} to {wanted[1]}: made for another model"
            )
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{folder}: {key} holds NaN or infinity")
        moves |= factor.startswith("B") and bool(tensor.any())
    if not moves:
        raise AdapterError(f"{folder} changes nothing: every lora_B is zero. Was it saved before training?")
    return config


def _features(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # GPT-2 keeps its weights transposed
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        return weight.shape[0], weight.shape[1]
    return None


def _example(modules: dict[str, nn.Module]) -> str:
    return next((name for name, module in modules.items() if _features(module) and "layer" in name or ".h." in name), "?")


def import_adapter(storage: Storage, folder: Path, name: str, model: nn.Module, *, base: str = "") -> AdapterRef:
    """Checks a user's adapter and copies it into the storage, where every node finds it."""
    config = check_adapter(folder, model, base=base)
    content = content_digest(folder)
    key = f"adapters/{content}"
    for file in (CONFIG, WEIGHTS):
        if not storage.exists(f"{key}/{file}"):
            storage.write_bytes(f"{key}/{file}", (folder / file).read_bytes())
    return AdapterRef(name, key, content, rank=int(config["r"]), alpha=float(config["lora_alpha"]))


def attach(model: nn.Module, adapters: Mapping[str, Path]) -> nn.Module:
    """The model with all adapters (name → folder) loaded, none merged, frozen; weights for blocks that were cut off are left out.

    Returns:
        A PeftModel, or the model itself when there are no adapters.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import set_peft_model_state_dict

    peft_model: Any = None
    for name, folder in adapters.items():
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        try:
            if peft_model is None:
                peft_model = get_peft_model(model, config, adapter_name=name)  # type: ignore[arg-type]
            else:
                peft_model.add_adapter(name, config)
        except ValueError as e:  # PEFT's word for: no module matches; blocks after the deepest hookpoint were cut off
            raise AdapterError(
                f"adapter {name} changes nothing at layers this shallow, none of its modules is there: choose deeper layers ({e})"
            ) from e
        present = {n.replace(f".{name}.", ".") for n, _ in peft_model.named_parameters() if f".{name}." in n}
        set_peft_model_state_dict(peft_model, {k: v for k, v in load_file(folder / WEIGHTS).items() if k in present}, adapter_name=name)
    return model if peft_model is None else peft_model.requires_grad_(False).eval()


def fetch(storage: Storage, adapters: Iterable[AdapterRef], scratch: Path) -> dict[str, Path]:
    """Adapter name → local folder; copied below `scratch` from an object store."""
    return {ref.name: storage.get_folder(ref.key, scratch / ref.name) for ref in adapters}
