"""What an adapter_config.json may say: every field that this program reads is checked for its type before any
work."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.slow_patterns import patterns_of
from deltasae_ray.models.weight_files import refuse_pointer

_ALTERS_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that write other weights into the base, and with which PEFT does so again on loading."""
_LEAVES_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations of A and B alone: what was trained from them is plain LoRA, and its tensors replace
whatever it began with."""
_UNSUPPORTED = (
    "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "use_qalora", "use_bdlora",
    "arrow_config", "monteclora_config", "kasa_config", "velora_config", "ensure_weight_tying",
    "megatron_config",
)  # fmt: skip
"""Settings that this program has no exact path for, when set."""


def parse_config(path: Path) -> dict[str, Any]:
    """Reads an adapter_config.json and checks its fields.

    Raises:
        AdapterError: names the file and the field, what it holds, and what it may hold.
    """
    config = _object(path)
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path.parent} is a {config.get('peft_type')!r} adapter (peft_type): only LoRA is supported"
        )
    for name, (allowed, fits) in _FIELDS.items():
        if name not in config and name in ("r", "lora_alpha"):
            raise AdapterError(
                f"{path} lacks {name}, without which the adapter's strength is unknown: copy it from the"
                " training's settings"
            )
        value = config.get(name)
        if name in config and not (value is None and name not in _NEEDED) and not fits(value):
            raise AdapterError(f"{path}: {name}={_short(value)} must be {allowed}")
    _check_patterns(path, config)
    _check_start(path, config)
    if unsupported := [name for name in _UNSUPPORTED if config.get(name)]:
        raise AdapterError(
            f"{path}: {unsupported[0]}={_short(config[unsupported[0]])} is not supported, its deltas would be"
            " silently wrong: train without it"
        )
    return config


def _object(path: Path) -> dict[str, Any]:
    refuse_pointer(path, AdapterError)
    try:
        text = path.read_bytes().decode("utf-8")
        if text.startswith("\ufeff"):
            raise AdapterError(
                f"{path} begins with a byte order mark, which PEFT cannot read: save it as UTF-8 without BOM"
            )
        config = json.loads(text)
    except UnicodeDecodeError as e:
        raise AdapterError(f"{path} is not UTF-8 (byte {e.start}): save it as UTF-8 without BOM") from e
    except (ValueError, RecursionError) as e:
        raise AdapterError(f"{path} is not valid JSON ({e}): was it cut off? Copy it again") from e
    if not isinstance(config, dict):
        raise AdapterError(
            f"{path} holds a JSON {type(config).__name__} where an object with peft_type, r and lora_alpha"
            " belongs"
        )
    return config


def _check_patterns(path: Path, config: dict[str, Any]) -> None:
    """PEFT reads these as regular expressions, which may not compile."""
    for name, text in patterns_of(config):
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as e:
            raise AdapterError(
                f"{path}: {name} holds {_short(text)}, which is no regular expression: {e}"
            ) from e


def _check_start(path: Path, config: dict[str, Any]) -> None:
    start = config.get("init_lora_weights")
    name = start.lower() if isinstance(start, str) else None
    if name is None or name in _LEAVES_THE_BASE:
        return
    if name.startswith("loftq"):
        raise AdapterError(
            f"{path}: init_lora_weights={start!r} quantised the base when training began, so the adapter "
            "belongs to that base and not to the "
            "original. Save the base it was trained on (model.unload().save_pretrained), give that folder as "
            "model.base, and set "
            "init_lora_weights to true in the adapter's config"
        )
    if name.startswith(_ALTERS_THE_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights={start!r} took a part out of the base's weights, so the adapter "
            "belongs to an altered base and its "
            "deltas would be silently wrong. Save it with PEFT's path_initial_model_for_weight_conversion, "
            "which makes it a plain LoRA adapter"
        )
    raise AdapterError(
        f"{path}: init_lora_weights={_short(start)} is not known to leave the base's weights alone; "
        "supported are true, false, "
        f"{', '.join(_LEAVES_THE_BASE)}. Where it only sets what A and B begin with, set it to true"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _number(value: object) -> bool:
    # an int may be too large for a float
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e30
        and math.isfinite(value)
    )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)


def _map_to(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(fits(v) for v in value.values())


def _flag(value: object) -> bool:
    return isinstance(value, bool)


_NEEDED = ("peft_type", "r", "lora_alpha")
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "lora_alpha": ("a number other than 0", lambda v: _number(v) and v != 0),
    "target_modules": ("a list of module names or a regular expression",
        lambda v: isinstance(v, str) and bool(v) or _texts(v) and bool(v)),
    "exclude_modules": ("a list of module names or a regular expression",
        lambda v: isinstance(v, str) or _texts(v)),
    "modules_to_save": ("a list of module names", _texts),
    "rank_pattern": ("a map from module names to ranks of at least 1", _map_to(lambda v: _whole(v, 1))),
    "alpha_pattern": ("a map from module names to numbers", _map_to(_number)),
    "layers_to_transform": (
        "a layer number or a list of them", lambda v: _whole(v, 0) or isinstance(v,
            list) and all(_whole(x, 0) for x in v)
    ),
    "layers_pattern": ("a name or a list of names", lambda v: isinstance(v, str) or _texts(v)),
    "lora_dropout": ("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1),
    "bias": ("none, all or lora_only", lambda v: v in ("none", "all", "lora_only")),
    "init_lora_weights": ("true, false or the name of an initialisation",
        lambda v: isinstance(v, bool | str)),
    "base_model_name_or_path": ("a folder or hub id", lambda v: isinstance(v, str)),
    "use_dora": ("true or false", _flag),
    "use_rslora": ("true or false", _flag),
    "lora_bias": ("true or false", _flag),
    "fan_in_fan_out": ("true or false", _flag),
}  # fmt: skip
"""Field → what it may hold, and the check; null stands for PEFT's own default, but not of those in
`_NEEDED`."""
