"""Which tensors an adapter's config asks for, found by letting PEFT build the adapter on the model's modules,
without weights."""

import copy
import dataclasses
import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_config import parse_config
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, base_name, lora_path, plain_key
from deltasae_ray.models.peft_names import new_peft_name
from deltasae_ray.models.slow_patterns import check_patterns_end

log = logging.getLogger(__name__)


def peft_config(folder: Path) -> Any:
    """PEFT's own object of an adapter's config, with nothing in it that touches the base: trained biases and
    modules are held apart, and what A and B begin with does not matter, since the file's tensors replace it.

    Raises:
        AdapterError: PEFT refuses it.
    """
    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    for name, value in parse_config(folder / CONFIG).items():
        if name not in known and (value is True or value and isinstance(value, dict | list)):
            raise AdapterError(
                f"{folder / CONFIG} sets {name}={_short(value)}, which PEFT {version('peft')} does not know"
                " and would leave out: the adapter is of a newer PEFT. If it does not matter for the forward"
                f" pass, remove {name} from the file"
            )
        if name not in known and value:  # of a newer PEFT's defaults many are numbers and names
            log.warning(
                "%s sets %s=%s, which PEFT %s does not know and leaves out: if it changes the forward pass, "
                "the deltas are wrong",
                folder / CONFIG, name, _short(value), version("peft"),
            )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(loftq|eva|corda)_config.*")
            config: Any = LoraConfig.from_pretrained(str(folder))
    except Exception as e:  # PEFT raises many types for settings that contradict each other
        raise AdapterError(f"{folder / CONFIG} is refused by PEFT: {_describe(e)}") from e
    config.inference_mode = True
    config.bias, config.modules_to_save, config.init_lora_weights = "none", None, True
    return config


def expected_shapes(folder: Path, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """LoRA tensor, by its key in a file → shape, of every module of the model that the config adapts; never
    none.

    Args:
        model: one without weights will do; it is left as it is.

    Raises:
        AdapterError: PEFT cannot build the adapter on this model, or it would adapt none of its modules.
    """
    from peft import get_peft_model

    config, bare = peft_config(folder), copy.deepcopy(model).to("meta")
    name = new_peft_name(bare)
    check_patterns_end(
        folder / CONFIG, parse_config(folder / CONFIG), (name for name, _ in bare.named_modules())
    )
    try:
        with warnings.catch_warnings():  # PEFT asks for what transformers has renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            built = get_peft_model(bare, config, adapter_name=name, low_cpu_mem_usage=True)  # type: ignore[arg-type]
    # PEFT raises many types: no module matches, ranks and layers that do not fit, classes it cannot adapt
    except Exception as e:
        raise AdapterError(
            f"{folder / CONFIG} does not fit this model: {_describe(e)} "
            f"(target_modules={_short(config.target_modules)}; the model's modules are "
            f"named like {example(model)})"
        ) from e
    shapes = {
        plain_key(key, name): tuple(parameter.shape)
        for key, parameter in built.named_parameters()
        if lora_path(key) is not None and name in key.split(".")
    }
    if not shapes:
        raise AdapterError(
            f"{folder / CONFIG} adapts no module of this model "
            f"(target_modules={_short(config.target_modules)}; its modules are named like "
            f"{example(model)})"
        )
    return shapes


def check_whole(
    folder: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Holds an adapter's LoRA tensors against what its config asks for on this model.

    Raises:
        AdapterError: one too few, which would stay at what PEFT drew; one too many, which PEFT would leave
            out; or another rank.
    """
    path = folder / WEIGHTS
    for key, tensor in tensors.items():
        if lora_path(key) is None:
            continue
        if key not in shapes:
            raise AdapterError(
                f"{path} holds {key!r}, which {CONFIG} does not ask for, so that PEFT would leave it out: "
                "the two files are not of one adapter, "
                "or a tool renamed keys. Save it with PEFT's save_pretrained"
            )
        if tuple(tensor.shape) != shapes[key]:
            raise AdapterError(
                f"{path}: {key!r} has shape {tuple(tensor.shape)}, and {CONFIG} asks for {shapes[key]}: r or "
                "rank_pattern are another adapter's"
            )
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise AdapterError(
            f"{folder} has no tensor for {base_name(missing[0])}, which its config asks for ({len(missing)} "
            f"of {len(shapes)} are not there): "
            "was it saved whole?"
        )


def example(model: nn.Module) -> str:
    """The name of one linear module in a block."""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    return next((name for name in linear if "layer" in name or ".h." in name), linear[0] if linear else "?")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _short(value: object) -> str:
    text = repr(sorted(value) if isinstance(value, set) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
