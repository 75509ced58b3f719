"""Base models in evaluation mode that compute in fp32, cut after the deepest hookpoint; and the few facts of
architectures we rely on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deltasae_ray.errors import DeltaSaeError, ModelError
from deltasae_ray.hookpoints import Site
from deltasae_ray.models.base_files import check_texts
from deltasae_ray.models.casts import widen


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, from its folder only.

    Raises:
        ModelError: the tokenizer comes with code of its own, which was not asked for.
    """
    from transformers import AutoTokenizer

    with _named_errors(folder):
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )


def load_model(
    folder: Path,
    *,
    deepest: int | None = None,
    weights: Literal["fp32", "bf16"] = "fp32",
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> nn.Module:
    """A causal language model that computes in fp32, frozen, in evaluation mode.

    Args:
        folder: config, tokenizer and safetensors.
        deepest: keep blocks 0..deepest only; nothing after the deepest hookpoint is ever computed. None keeps
            all.
        weights: how they are held; bf16 ones are cast to fp32 as they are used. Shards are rounded by
            `zero3.run_sharded`.

    Raises:
        ModelError: an architecture whose blocks are not found, a checkpoint that lacks weights of it, or code
            of the model's own, which was not asked for.
    """
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False  # TF32 has bf16's rounding, which swallows small deltas
    torch.backends.cudnn.allow_tf32 = False
    with _named_errors(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if weights == "bf16" else torch.float32,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    _refuse_gaps(folder, model, info["missing_keys"])
    model.config.use_cache = False
    model.requires_grad_(False).eval()
    if deepest is not None:
        truncate(model, deepest)
    if weights == "bf16":
        _restore_buffers(model)
        widen(model, torch.float32)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return model


def load_ends(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """Embedding, first block, final norm and language-model head, in fp32 on the CPU: what directions are
    read with. Nothing else of the checkpoint is read.

    Raises:
        ModelError: a checkpoint that lacks one of them, or code of the model's own, which was not asked for.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list every weight that is left out
    try:
        with _named_errors(folder):
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
            text: Any = config.get_text_config()
            text.num_hidden_layers = 1
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:1]
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                # some of Gemma 4 is shaped by its depth, none of which directions are read with
                ignore_mismatched_sizes=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    model, info = loaded
    _refuse_gaps(folder, model, info["missing_keys"])
    return model.requires_grad_(False).eval()


def _refuse_gaps(folder: Path, model: nn.Module, lacking: Iterable[str]) -> None:
    """Raises ModelError where parameters are `lacking` from the checkpoint: transformers starts those at
    random and only warns."""
    if lost := sorted(lacking):
        raise ModelError(
            f"{folder}: its checkpoint lacks"
            f" {', '.join(lost[:3])}{f' and {len(lost) - 3} more' if len(lost) > 3 else ''} of what"
            f" {type(model).__name__} has, which would be random: is the checkpoint whole, and config.json"
            " its own?"
        )


def ends_bytes(folder: Path, *, trust_remote_code: bool = False) -> int:
    """What `load_ends` holds in memory."""
    model = empty_model(folder, trust_remote_code=trust_remote_code)
    later = sum(p.numel() for block in blocks(model)[1:] for p in block.parameters())
    return 4 * (sum(p.numel() for p in model.parameters()) - later)


def _restore_buffers(model: nn.Module) -> None:
    """Constants of the architecture that no checkpoint holds, such as Gemma's scale of embeddings, in fp32:
    loading rounded them."""
    for module in model.modules():
        lost = [n for n, b in module.named_buffers(recurse=False) if b.dtype is torch.bfloat16]
        if lost:
            module._buffers.update({name: module._buffers[name].float() for name in lost})  # type: ignore[union-attr]
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers leaves it as it is
            model._init_weights(module)  # type: ignore[operator]


def empty_model(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The model's modules with shapes and no weights: what adapters are checked against in a second.

    Raises:
        ModelError: code of the model's own, which was not asked for.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"), _named_errors(folder):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code),
            trust_remote_code=trust_remote_code,
        )


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    """Raises ModelError for whatever transformers says of a model's files, of which it raises dozens of
    types."""
    try:
        yield
    except (DeltaSaeError, MemoryError, torch.OutOfMemoryError):  # the last two are no fault of the files
        raise
    except Exception as e:
        if isinstance(e, ValueError) and "trust_remote_code" in str(e):
            raise ModelError(
                f"{folder} comes with code of its own: read it, then set model.trust_remote_code=true to"
                " run it"
            ) from e
        text = " ".join(str(e).split())[:400]
        check_texts(folder)  # what transformers says of a pointer or half a file does not name it
        raise ModelError(f"{folder} cannot be loaded: {type(e).__name__}: {text}") from e


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
            f"{type(inner).__name__}: no decoder found; supported are models with get_decoder(), such as"
            " Llama, Gemma and GPT-2"
        )
    return decoder


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks, in order.

    Raises:
        ModelError: none of `layers`, `h` and `blocks` of the backbone is a list of modules.
    """
    stack = backbone(model)
    for name in ("layers", "h", "blocks"):
        child = getattr(stack, name, None)
        if isinstance(child, nn.ModuleList):
            return child
    raise ModelError(
        f"{type(stack).__name__}: its blocks are in none of `layers`, `h` and `blocks`, so this architecture"
        " is not supported"
    )


def check_blocks(model: nn.Module, num_layers: int) -> None:
    """Checks that the blocks of an architecture are found, and are as many as its config says (a model
    without weights will do).

    Raises:
        ModelError: they are not, so that layers would not mean what they say.
    """
    if len(blocks(model)) != num_layers:
        raise ModelError(
            f"{type(base_of(model)).__name__} has {len(blocks(model))} blocks where its config counts "
            f"{num_layers} layers: this architecture "
            "is not supported"
        )


_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""Norms that stand between attention or MLP and the residual stream: of Gemma 2 and 3 and OLMo 2; of GLM
4."""


def site_module(block: nn.Module, site: Site) -> nn.Module:
    """The module of a block whose output stands at `site`.

    Raises:
        ModelError: the block's attention or MLP is not found.
    """
    if site == "resid_post":
        return block
    attention = ("self_attn", "attn", "attention", "self_attention", "linear_attn")
    names = attention if site == "attn_out" else ("mlp",)
    for attn, mlp in _POST_NORMS:
        if hasattr(block, mlp):
            names = (attn,) if site == "attn_out" else (mlp,)
    for name in names:
        child = getattr(block, name, None)
        if isinstance(child, nn.Module):
            return child
    raise ModelError(
        f"{type(block).__name__} has no {' or '.join(names)}: {site} is not known for this architecture; use"
        " resid_post"
    )


def truncate(model: nn.Module, deepest: int) -> None:
    """Drops every block after `deepest`, in place; the config keeps the true depth, which positions and masks
    depend on."""
    del blocks(model)[deepest + 1 :]


def has_post_norm(folder: Path, *, trust_remote_code: bool = False) -> bool:
    """Whether blocks norm what attention and MLP write to the residual stream (Gemma 2 and 3): then δ =
    s·B·A·u never holds."""
    stack = blocks(empty_model(folder, trust_remote_code=trust_remote_code))
    return any(hasattr(block, mlp) for block in stack for _, mlp in _POST_NORMS)
