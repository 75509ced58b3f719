"""SAELens' configuration and weights, to and from ours: raw units, b_dec subtracted from the input, unit decoder rows."""

from typing import Any

import torch
from torch import Tensor

from deltasae_ray.errors import DictionaryError

ARCHITECTURES = ("topk", "jumprelu", "standard")
"""SAELens' names: the k largest; those above a threshold each; ReLU. BatchTopK is JumpReLU once its threshold is frozen."""


def cfg(architecture: str, d_model: int, d_sae: int, k: int, meta: dict) -> dict[str, Any]:
    """cfg.json of SAELens 6 for weights in raw units."""
    known = {"hook_name": meta.get("hookpoint"), "model_name": meta.get("model"), "sae_lens_version": "6.54.0"}
    made = {
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
    return made | ({"k": k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {})


def fields(cfg: dict, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What `Dictionary` takes, from SAELens' configuration and weights, with decoder norms and an unsubtracted b_dec folded in.

    Raises:
        DictionaryError: something that cannot be folded exactly, or an activation function that contradicts the weights.
    """
    if not isinstance(cfg, dict) or {"W_enc", "W_dec", "b_enc", "b_dec"} - set(weights):
        raise DictionaryError(f"weights are {sorted(weights)}: W_enc, W_dec, b_enc and b_dec are needed")
    architecture, k = _activation(cfg, weights)
    for name, plain in (("normalize_activations", ("none", None)), ("reshape_activations", ("none", None))):
        if cfg.get(name, "none") not in plain:
            raise DictionaryError(f"{name}={cfg[name]!r} cannot be folded into the weights: raw activations would be encoded wrongly")
    w = {name: tensor.detach().to(torch.float32) for name, tensor in weights.items()}
    d_model, d_sae = w["W_enc"].shape if w["W_enc"].ndim == 2 else (-1, -1)
    if (cfg.get("d_in"), cfg.get("d_sae")) != (d_model, d_sae) or w["W_dec"].shape != (d_sae, d_model):
        raise DictionaryError(
            f"cfg.json says {cfg.get('d_in')} x {cfg.get('d_sae')}, "
            f"but W_enc is {tuple(w['W_enc'].shape)} and W_dec {tuple(w['W_dec'].shape)}"
        )
    if not cfg.get("apply_b_dec_to_input", True):
        w["b_enc"] = w["b_enc"] + w["b_dec"] @ w["W_enc"]
    threshold = w.get("threshold")
    if architecture != "topk" or cfg.get("rescale_acts_by_decoder_norm"):
        # z · norm with a unit row is the same reconstruction; thresholds and the order of latents move along with it.
        norms = torch.linalg.vector_norm(w["W_dec"], dim=1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        w |= {"W_enc": w["W_enc"] * norms, "b_enc": w["b_enc"] * norms, "W_dec": w["W_dec"] / norms[:, None]}
        threshold = None if threshold is None else threshold * norms
    metadata = cfg["metadata"] if isinstance(cfg.get("metadata"), dict) else {}
    meta = {"hookpoint": metadata.get("hook_name"), "model": metadata.get("model_name")}
    return {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")} | {
        "architecture": architecture,
        "k": k,
        "firing": torch.ones(d_sae),
        "energy": torch.ones(d_sae),
        "meta": {name: value for name, value in meta.items() if value is not None},
        "threshold": threshold,
    }


def _activation(cfg: dict, weights: dict[str, Tensor]) -> tuple[str, int]:
    """(architecture, k), where configuration and weights agree about them."""
    architecture = "standard" if cfg.get("architecture") == "relu" else cfg.get("architecture")
    if architecture not in ARCHITECTURES:
        raise DictionaryError(f"architecture {architecture!r} is not supported: {list(ARCHITECTURES)} are")
    named = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if architecture == "standard" and (named != "relu" or cfg.get("k") is not None):
        raise DictionaryError(
            f"cfg.json says ReLU, but also activation_fn={named!r}, k={cfg.get('k')}: a TopK read as ReLU reconstructs nothing"
        )
    if (architecture == "jumprelu") != ("threshold" in weights):
        raise DictionaryError(
            f"cfg.json says {architecture}, but there is {'a' if 'threshold' in weights else 'no'} threshold among the weights"
        )
    k = cfg.get("k", 0) if architecture == "topk" else 0
    if architecture == "topk" and (not isinstance(k, int) or k < 1):
        raise DictionaryError(f"k={k!r} of a topk dictionary must be a number above 0")
    return architecture, k
