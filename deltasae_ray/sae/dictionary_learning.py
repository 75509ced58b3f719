"""Folders of dictionary_learning: config.json and ae.pt, a pickle, which is never opened; a safetensors copy
of it is read."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.metadata import check_metadata

PICKLE, WEIGHTS = "ae.pt", "ae.safetensors"
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
}
"""Class of dictionary_learning → SAELens' architecture; a BatchTopK encodes single tokens by its
threshold."""

_KNOWN = """
trainer buffer trainer_class dict_class layer lm_name submodule_name activation_dim dict_size k lr
l1_penalty sparsity_penalty warmup_steps sparsity_warmup_steps resample_steps decay_start steps seed device
wandb_name auxk_alpha top_k_aux threshold_beta threshold_start_step threshold bandwidth target_l0
initial_threshold sparsity_function p_start p_end anneal_start anneal_end group_fractions group_weights
group_sizes k_anneal_steps apply_b_dec_to_input io d_submodule n_ctxs ctx_len refresh_batch_size
out_batch_size add_special_tokens max_activation_norm_multiple rescale_acts normalize_activations
"""
"""Keys of its configurations that are read here or leave the input as it is."""


def as_saelens(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights in SAELens' layout.

    Raises:
        DictionaryError: a class that is not read here, weights of other names, or activations that were not a
            block's output as it is.
    """
    trainer, buffer = config.get("trainer"), config.get("buffer") or {}
    if (
        not isinstance(trainer, dict)
        or not isinstance(buffer, dict)
        or (kind := trainer.get("dict_class")) not in _CLASSES
    ):
        kind = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise DictionaryError(
            f"{folder}: dict_class={kind!r} of dictionary_learning is not read here:"
            f" {', '.join(_CLASSES)} are"
        )
    if buffer.get("io", "out") != "out":
        raise DictionaryError(
            f"{folder}: buffer.io={buffer['io']!r}: one that reads the output of its module (io=out) is"
            " needed"
        )
    if any(
        part.get(name)
        for part in (buffer, trainer, config)
        for name in ("rescale_acts", "normalize_activations")
    ):
        raise DictionaryError(
            f"{folder}: it was trained on rescaled activations: fold the scale into the weights first"
        )
    facts = {**config, **buffer, **trainer}
    check_metadata(
        {name: value for name, value in facts.items() if name not in _KNOWN.split()},
        str(folder / "config.json"),
    )
    stored = weights.get("k")
    k = stored.flatten().tolist()[0] if stored is not None and stored.numel() == 1 else None
    if k is not None and trainer.get("k") is not None and k != trainer["k"]:
        raise DictionaryError(
            f"{folder}: config.json says k={trainer['k']!r} and {WEIGHTS} holds k={k}: they are not of one"
            " dictionary, copy both again"
        )
    converted, architecture = _weights(folder, kind, weights), _CLASSES[kind]
    d_in, d_sae = converted["W_enc"].shape
    metadata = {
        "hook_name": trainer.get("submodule_name"),
        "model_name": trainer.get("lm_name"),
        "hook_layer": trainer.get("layer"),
    }
    subtracted = kind != "JumpReluAutoEncoder" or bool(trainer.get("apply_b_dec_to_input", False))
    fields = {
        "architecture": architecture,
        "d_in": trainer.get("activation_dim", d_in),
        "d_sae": trainer.get("dict_size", d_sae),
    }
    fields |= {"k": trainer.get("k")} if architecture == "topk" else {}
    return {**fields, "apply_b_dec_to_input": subtracted, "metadata": metadata}, converted


def _weights(folder: Path, kind: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {**_LINEAR, "bias" if kind == "AutoEncoder" else "b_dec": "b_dec"}
    if kind == "JumpReluAutoEncoder":
        named = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    scalars = {"k", "threshold"} if kind in ("AutoEncoderTopK", "BatchTopKSAE") else set()
    if set(named) - set(weights) or set(weights) - set(named) - scalars or not _matrices(weights):
        raise DictionaryError(
            f"{folder / WEIGHTS} holds {sorted(weights)}: those of a {kind}, {sorted(named)}, are needed"
        )
    tensors = {
        to: weights[name].T if name.endswith(".weight") else weights[name] for name, to in named.items()
    }
    if kind == "BatchTopKSAE":
        threshold = weights.get("threshold", torch.tensor(-1.0))
        if threshold.numel() != 1 or not float(threshold) >= 0:
            raise DictionaryError(
                f"{folder}: a BatchTopKSAE encodes single tokens by its threshold, and has none: finish its"
                " training"
            )
        tensors["threshold"] = threshold.reshape(()).float().expand(tensors["b_enc"].shape).clone()
    return tensors


def _matrices(weights: dict[str, Tensor]) -> bool:
    return all(
        tensor.ndim == 2
        for name, tensor in weights.items()
        if name.endswith(".weight") or name.startswith("W_")
    )


def recipe(pickle: Path) -> str:
    """What turns a pickle of weights into a safetensors file beside it, without running code from it."""
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{pickle.name}', map_location='cpu', weights_only=True); "
        "s.save_file({n: t.contiguous() for n, t in w.items() if torch.is_tensor(t)},"
        f" '{pickle.with_suffix('.safetensors').name}')\""
    )
