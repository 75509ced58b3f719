"""Base models in fp32, evaluation mode, cut after the deepest hookpoint; and the few facts of architectures we rely on."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import Site


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, from its folder only."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_model(folder: Path, *, deepest: int | None = None, trust_remote_code: bool = False, device: str = "cpu") -> nn.Module:
    """A causal language model in fp32, frozen, in evaluation mode.

    Args:
        folder: config, tokenizer and safetensors.
        deepest: keep blocks 0..deepest only; nothing after the deepest hookpoint is ever computed. None keeps all.

    Raises:
        ModelError: an architecture whose blocks are not found.
    """
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False  # TF32 has bf16's rounding, which swallows small deltas
    torch.backends.cudnn.allow_tf32 = False
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    model.config.use_cache = False
    model.requires_grad_(False).eval()
    if deepest is not None:
        truncate(model, deepest)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return model


def empty_model(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The model's modules with shapes and no weights: what adapters are checked against in a second."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code),
            trust_remote_code=trust_remote_code,
        )


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model below a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def backbone(model: nn.Module) -> nn.Module:
    """The stack of blocks without the language-model head.

    Raises:
        ModelError: transformers names no decoder for this architecture.
    """
    inner = base_of(model)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None  # type: ignore[operator]
    if decoder is None or decoder is inner:
        decoder = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    if not isinstance(decoder, nn.Module):
        raise ModelError(
            f"{type(inner).__name__}: no decoder found; supported are models with get_decoder(), such as Llama, Gemma and GPT-2"
        )
    return decoder


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks, in order.

    Raises:
        ModelError: neither `layers` nor `h` of the backbone is a list of modules.
    """
    stack = backbone(model)
    for name in ("layers", "h"):
        found = getattr(stack, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise ModelError(f"{type(stack).__name__}: its blocks are in neither `layers` nor `h`")


def site_module(block: nn.Module, site: Site) -> nn.Module:
    """The module of a block whose output stands at `site`.

    Raises:
        ModelError: the block's attention or MLP is not found.
    """
    if site == "resid_post":
        return block
    if hasattr(block, "post_feedforward_layernorm"):  # Gemma 2 and 3, OLMo 2: a norm stands between the module and the residual stream
        names = ("post_attention_layernorm",) if site == "attn_out" else ("post_feedforward_layernorm",)
    else:
        names = ("self_attn", "attn") if site == "attn_out" else ("mlp",)
    for name in names:
        found = getattr(block, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ModelError(f"{type(block).__name__} has no {' or '.join(names)}: {site} is not known for this architecture; use resid_post")


def truncate(model: nn.Module, deepest: int) -> None:
    """Drops every block after `deepest`, in place; the config keeps the true depth, which positions and masks depend on."""
    del blocks(model)[deepest + 1 :]


def has_post_norm(folder: Path) -> bool:
    """Whether blocks norm what attention and MLP write to the residual stream (Gemma 2 and 3): then δ = s·B·A·u never holds."""
    return any("post_attention_norm" in n or "post_feedforward_layernorm" in n for n, _ in empty_model(folder).named_modules())
