"""Gemma Scope's own files, of its first and its second release."""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae import dictionary_learning, sparsify
from deltasae_ray.sae.dictionary import CFG, WEIGHTS, Dictionary, read_tensors
from deltasae_ray.sae.layout import fields
from deltasae_ray.sae.made_for import scope_of
from deltasae_ray.sae.metadata import check_metadata

_SCOPE_HOOKS = {
    "res": "hook_resid_post",
    "resid_post": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "mlp_out": "hook_mlp_out",
    "att": "attn.hook_z",
    "attn_out": "attn.hook_z",
}
"""Gemma Scope's names of what was read, of the first and the second."""
_SCOPE_CONFIG = {
    "architecture",
    "model_name",
    "hf_hook_point_in",
    "hf_hook_point_out",
    "width",
    "l0",
    "affine_connection",
    "type",
}
"""Keys of Gemma Scope 2's config.json that are read here or leave the input as it is."""


def read_object(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise DictionaryError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(parsed, dict):
        raise DictionaryError(f"{path} must hold an object with fields")
    return parsed


def no_dictionary(folder: Path) -> DictionaryError:
    """Says what a folder holds instead of a dictionary that is read, and how to convert it."""
    there = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in there if name.endswith((".pt", ".pth", ".bin", ".pkl", ".ckpt"))]
    if not pickles:
        return DictionaryError(
            f"{folder} holds no dictionary, only {there[:12]}: {CFG} with {WEIGHTS} (SAELens) or"
            f" {sparsify.WEIGHTS} (sparsify), config.json with {dictionary_learning.WEIGHTS}"
            " (dictionary_learning), params.safetensors or params.npz (Gemma Scope) are read"
        )
    whose = (
        "a folder of dictionary_learning, whose"
        if pickles[0] == dictionary_learning.PICKLE
        else "a folder whose"
    )
    return DictionaryError(
        f"{folder} is {whose} weights are a pickle, {pickles[0]}, which could run code and is never opened:"
        f" convert it there once with\n  {dictionary_learning.recipe(folder / pickles[0])}\nand give the"
        " folder again"
    )


def open_gemma_scope(folder: Path) -> Dictionary:
    """JumpReLU parameters in lower case, b_dec not subtracted from the input; the hookpoint is in config.json
    or the path."""
    try:
        if (folder / "params.safetensors").exists():
            parameters = read_tensors(folder / "params.safetensors")[0]
        elif (folder / "params.npz").exists():
            with np.load(folder / "params.npz", allow_pickle=False) as arrays:
                parameters = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            raise no_dictionary(folder)
        config = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
    except DictionaryError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        NotImplementedError,
        SafetensorError,
        BadZipFile,
        zlib.error,
    ) as e:
        raise DictionaryError(f"{folder} cannot be opened: {e}") from e
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise DictionaryError(
            f"{folder}: architecture {config['architecture']!r} is not supported in Gemma Scope's layout"
        )
    if config.get("hf_hook_point_out", config.get("hf_hook_point_in")) != config.get("hf_hook_point_in"):
        raise DictionaryError(
            f"{folder} is a transcoder, from {config.get('hf_hook_point_in')} to"
            f" {config['hf_hook_point_out']}"
        )
    weights = {re.sub(r"^w_", "W_", name): tensor for name, tensor in parameters.items()}
    if "W_enc" not in weights or weights["W_enc"].ndim != 2:
        raise DictionaryError(f"{folder} has {sorted(parameters)}, which are not Gemma Scope's parameters")
    check_metadata(
        {name: value for name, value in config.items() if name not in _SCOPE_CONFIG},
        f"{folder / 'config.json'}",
    )
    d_in, d_sae = weights["W_enc"].shape
    metadata = _scope_metadata(folder, config)
    cfg = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": False,
        "metadata": metadata,
    }
    return Dictionary(**fields(cfg, weights))


def _scope_metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, str | None]:
    """Hookpoint and model: config.json's, or what the folder is called in the repository of Gemma Scope that
    it lies in."""
    if "hf_hook_point_in" in config:
        return {"hook_name": config["hf_hook_point_in"], "model_name": config.get("model_name")}
    path = str(folder.absolute())
    model, kind = scope_of(path) or (None, "")
    layer = re.search(r"layer_(\d+)", path[path.find("gemma-scope") :])
    hook = f"blocks.{int(layer[1])}.{_SCOPE_HOOKS.get(kind, kind)}" if layer and kind else None
    return {"hook_name": hook, "model_name": config.get("model_name", model)}
