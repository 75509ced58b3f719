"""A new LoRA on a base model, and its plain PEFT files; the only file of this room that knows PEFT."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS
from deltasae_ray.models.load import blocks


def check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    """Checks that every target names linear modules of the blocks, and of nothing else (a model without
    weights will do).

    Raises:
        AdapterError: names what there is.
    """
    inside = {
        name.rsplit(".", 1)[-1]
        for block in blocks(model)
        for name, module in block.named_modules()
        if _is_linear(module)
    }
    inner = {id(module) for block in blocks(model) for module in block.modules()}
    outside = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if _is_linear(module) and id(module) not in inner
    }
    there = ", ".join(sorted(inside))
    missing = [t for t in targets if t not in inside]
    if missing:
        raise AdapterError(
            f"adapt.targets={list(targets)}: this model's blocks have no linear module {missing}; they have:"
            f" {there}"
        )
    if both := [t for t in targets if t in outside]:
        raise AdapterError(
            f"adapt.targets={list(targets)}: {both} also names modules outside the blocks; choose from:"
            f" {there}"
        )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def new_lora(
    model: nn.Module, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> nn.Module:
    """The model with one trainable adapter: A from the seed, B zero. Evaluation mode; everything else stays
    frozen."""
    from peft import LoraConfig, get_peft_model

    transposed = any(
        type(m).__name__ == "Conv1D" for block in blocks(model) for m in block.modules()
    )  # GPT-2
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model.requires_grad_(False), config).eval()  # type: ignore[arg-type]


def dropout_modules(model: nn.Module) -> list[nn.Module]:
    """The adapter's own dropouts. Those of the base stay off: it is the base that is harvested."""
    return [m for name, m in model.named_modules() if ".lora_dropout." in name and isinstance(m, nn.Dropout)]


def save_lora(model: nn.Module, folder: Path, label: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors; equal adapters give equal bytes.

    Args:
        label: of the base model, in place of the path it was loaded from, which would name this machine.
    """
    from peft import get_peft_model_state_dict

    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()
    }  # type: ignore[arg-type]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config: Any = model.peft_config
    facts = config["default"].to_dict() | {"base_model_name_or_path": label, "inference_mode": True}
    # PEFT keeps names in sets, whose order differs from process to process.
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in facts.items()}
    (folder / CONFIG).write_text(json.dumps(plain, sort_keys=True, indent=1))
