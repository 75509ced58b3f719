"""SAELens' configuration and weights, to and from ours: raw units, b_dec subtracted from the input, unit
decoder rows."""

import re
from typing import Any

import torch
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.hookpoints import place_of
from deltasae_ray.sae.metadata import check_metadata

ARCHITECTURES = ("topk", "jumprelu", "standard")
"""SAELens' names: the k largest; those above a threshold each; ReLU. BatchTopK is JumpReLU once its threshold
is frozen."""


def cfg(architecture: str, d_model: int, d_sae: int, k: int, meta: dict) -> dict[str, Any]:
    """cfg.json of SAELens 6 for weights in raw units."""
    known = {
        "hook_name": meta.get("hookpoint"),
        "model_name": meta.get("model"),
        "sae_lens_version": "6.54.0",
    }
    fields = {
        "architecture": architecture,
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {name: value for name, value in known.items() if value is not None},
    }
    return fields | ({"k": k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {})


def fields(cfg: dict, weights: dict[str, Tensor], name: str = "cfg.json") -> dict[str, Any]:
    """What `Dictionary` takes, from SAELens' configuration and weights, with decoder norms and an
    unsubtracted b_dec folded in.

    Args:
        name: what the configuration is called in warnings.

    Raises:
        DictionaryError: something that cannot be folded exactly, an activation function that contradicts the
            weights, metadata that change the input, or weights of another number, type or shape than the
            configuration says.
    """
    if not isinstance(cfg, dict) or {"W_enc", "W_dec", "b_enc", "b_dec"} - set(weights):
        raise DictionaryError(f"weights are {sorted(weights)}: W_enc, W_dec, b_enc and b_dec are needed")
    architecture, k = _activation(cfg, weights)
    for key in ("normalize_activations", "reshape_activations"):
        if cfg.get(key) not in ("none", None, False):
            raise DictionaryError(
                f"{key}={cfg[key]!r} cannot be folded into the weights: raw activations would be encoded"
                " wrongly. Take a dictionary of raw activations, or fold a constant scale into the weights"
                " with the library that trained it"
            )
    for key, usual in (("apply_b_dec_to_input", True), ("rescale_acts_by_decoder_norm", False)):
        if not isinstance(cfg.get(key, usual), bool):
            raise DictionaryError(f"{key}={cfg[key]!r} must be true or false")
    check_metadata(cfg, name)
    w = _checked(cfg, weights)
    d_sae = w["W_enc"].shape[1]
    if not cfg.get("apply_b_dec_to_input", True):
        w["b_enc"] = w["b_enc"] + w["b_dec"] @ w["W_enc"]
    threshold = w.get("threshold")
    if architecture != "topk" or cfg.get("rescale_acts_by_decoder_norm"):
        # z · norm with a unit row is the same reconstruction; thresholds and the order of latents move along
        # with it.
        norms = torch.linalg.vector_norm(w["W_dec"], dim=1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        w |= {"W_enc": w["W_enc"] * norms, "b_enc": w["b_enc"] * norms, "W_dec": w["W_dec"] / norms[:, None]}
        threshold = None if threshold is None else threshold * norms
    return {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")} | {
        "architecture": architecture,
        "k": k,
        "firing": torch.ones(d_sae),
        "energy": torch.ones(d_sae),
        "meta": _made_for(cfg),
        "threshold": threshold,
    }


def kept(meta: dict) -> dict:
    """What `Dictionary.save` noted, as it is read back.

    Raises:
        DictionaryError: hookpoint or model is no name, or the number of rows no number.
    """
    for name, kind in (("hookpoint", str), ("model", str), ("rows", int)):
        if not isinstance(meta.get(name, kind()), kind):
            raise DictionaryError(f"{name}={meta[name]!r} of the statistics is no {kind.__name__}")
    return meta


def _checked(cfg: dict, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in fp32, of the shapes that the configuration says, and no others."""
    extra = {n: t for n, t in weights.items() if n not in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    factors = ("scaling_factor", "finetuning_scaling_factor")
    if unknown := [n for n, t in extra.items() if n not in factors or not bool((t == 1).all())]:
        raise DictionaryError(
            f"weights hold {unknown} beside those of an encoder and a decoder: what they do is not known here"
        )
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise DictionaryError(
                f"{name} is of type {tensor.dtype}, which is no floating point: quantised weights must be"
                " expanded first"
            )
    w = {
        name: tensor.detach().to(torch.float32).contiguous()
        for name, tensor in weights.items()
        if name not in extra
    }
    d_model, d_sae = w["W_enc"].shape if w["W_enc"].ndim == 2 else (-1, -1)
    if (
        (cfg.get("d_in"), cfg.get("d_sae")) != (d_model, d_sae)
        or w["W_dec"].shape != (d_sae, d_model)
        or not d_model * d_sae
    ):
        raise DictionaryError(
            f"cfg.json says {cfg.get('d_in')!r} x {cfg.get('d_sae')!r}, "
            f"but W_enc is {tuple(w['W_enc'].shape)} and W_dec {tuple(w['W_dec'].shape)}"
        )
    for name, shape in (("b_enc", (d_sae,)), ("b_dec", (d_model,)), ("threshold", (d_sae,))):
        if name in w and w[name].shape != shape:
            raise DictionaryError(
                f"{name} has shape {tuple(w[name].shape)}, which does not fit W_enc {d_model} x {d_sae}"
            )
    return w


def _layer(fields: dict, hook: str | None) -> dict[str, str]:
    """The layer that the metadata count beside, or instead of, a place's name.

    Raises:
        DictionaryError: another one than the name's.
    """
    layer = next(
        (fields[key] for key in ("hook_layer", "hook_point_layer") if fields.get(key) is not None), None
    )
    if not isinstance(layer, int) or isinstance(layer, bool):
        return {}
    if not hook:
        return {"layer": str(layer)}
    named = re.findall(r"\d{1,9}", hook)
    if named and layer not in map(int, named):
        raise DictionaryError(
            f"hook_name={hook} and hook_layer={layer} of the metadata are two layers: see which is right, and"
            " take the other out"
        )
    return {}


def _made_for(cfg: dict) -> dict[str, str]:
    """Hookpoint, in the one spelling, and model of the metadata, where they say so; the layer where they tell
    no more of the place.

    Raises:
        DictionaryError: a name that is no text, or two names of different places.
    """
    metadata = cfg["metadata"] if isinstance(cfg.get("metadata"), dict) else {}
    named = {name: metadata.get(name) for name in ("hook_name", "hf_hook_name", "model_name")}
    for name, value in named.items():
        if value is not None and not isinstance(value, str):
            raise DictionaryError(f"{name}={value!r} of the metadata must be a name")
    places = [place_of(name) for name in (named["hook_name"], named["hf_hook_name"]) if name]
    blocks = {place for place in places if place.endswith(("hook_resid_post", "hook_resid_pre"))}
    if len(blocks) > 1:
        raise DictionaryError(
            f"hook_name={named['hook_name']} and hf_hook_name={named['hf_hook_name']} are two places:"
            f" {sorted(blocks)}"
        )
    stated = {
        "hookpoint": places[0] if places else None,
        "model": named["model_name"],
        **_layer({**cfg, **metadata}, named["hook_name"]),
    }
    return {name: value for name, value in stated.items() if value}


def _activation(cfg: dict, weights: dict[str, Tensor]) -> tuple[str, int]:
    """(architecture, k), where configuration and weights agree about them."""
    architecture = "standard" if cfg.get("architecture") == "relu" else cfg.get("architecture")
    if architecture not in ARCHITECTURES:
        raise DictionaryError(f"architecture {architecture!r} is not supported: {list(ARCHITECTURES)} are")
    named = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if architecture == "standard" and (named != "relu" or cfg.get("k") is not None):
        raise DictionaryError(
            f"cfg.json says ReLU, but also activation_fn={named!r}, k={cfg.get('k')}: a TopK read as ReLU"
            " reconstructs nothing"
        )
    if architecture != "standard" and named not in ("relu", "topk", "jumprelu", "jump_relu", None):
        raise DictionaryError(f"activation_fn={named!r} of a {architecture} dictionary is not known here")
    if (architecture == "jumprelu") != ("threshold" in weights):
        raise DictionaryError(
            f"cfg.json says {architecture}, but there is {'a' if 'threshold' in weights else 'no'} threshold"
            " among the weights"
        )
    k = cfg.get("k", 0) if architecture == "topk" else 0
    if architecture == "topk" and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise DictionaryError(f"k={k!r} of a topk dictionary must be a number above 0")
    arguments = cfg.get("activation_fn_kwargs")
    if architecture == "topk" and isinstance(arguments, dict) and arguments.get("k", k) != k:
        raise DictionaryError(
            f"k={k} and activation_fn_kwargs={arguments} of a topk dictionary contradict each other"
        )
    return architecture, k
