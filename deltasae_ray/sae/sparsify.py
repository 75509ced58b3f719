"""Folders of EleutherAI's sparsify: cfg.json and sae.safetensors, a TopK of ReLU'd pre-activations that are
not scaled by decoder norms."""

from pathlib import Path
from typing import Any

from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.hookpoints import place_of

WEIGHTS = "sae.safetensors"
_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
"""Whose output is no block's."""


def as_saelens(
    folder: Path, cfg: dict[str, Any], weights: dict[str, Tensor], run: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights in SAELens' layout.

    Args:
        folder: its name is the hookpoint, such as layers.12: the output of that module.
        run: config.json of the folder above, which names the model; may be empty.

    Raises:
        DictionaryError: weights of other names, or an activation function other than TopK.
    """
    if set(weights) != set(_NAMES) or weights["encoder.weight"].ndim != 2:
        raise DictionaryError(
            f"{folder / WEIGHTS} holds {sorted(weights)}: sparsify's {sorted(_NAMES)} are needed, and a"
            " decoder in W_dec"
        )
    if cfg.get("activation", "topk") != "topk":
        raise DictionaryError(
            f"{folder}: activation {cfg['activation']!r} of sparsify is not supported: topk is"
        )
    d_sae, d_in = weights["encoder.weight"].shape
    known = {name: cfg[name] for name in cfg if name not in ("num_latents", "expansion_factor", "d_in")}
    model = run.get("model")
    place = place_of(folder.name)
    named = (
        place.startswith("blocks.")
        or "layers." in place
        or ".h." in place
        or place.rpartition(".")[2] in _EMBEDDINGS
    )
    metadata = {"hook_name": place if named else None}
    metadata |= {"model_name": model if isinstance(model, str) else None}
    converted = {
        _NAMES[name]: tensor.T if name == "encoder.weight" else tensor for name, tensor in weights.items()
    }
    shape = {
        "architecture": "topk",
        "d_in": cfg.get("d_in", d_in),
        "d_sae": cfg.get("num_latents") or d_sae,
        "k": cfg.get("k"),
    }
    return {**known, **shape, "apply_b_dec_to_input": True, "metadata": metadata}, converted
