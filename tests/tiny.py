"""Tiny models, a tokenizer and adapters built from configs: nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = ("llama", "gemma3", "gpt2")
VOCAB = 320
D_MODEL = 32
LAYERS = 4


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": {},  # attention and MLP side by side
    "phi3": {},  # one matrix for queries, keys and values
    "qwen3": {"head_dim": 8},
    "olmo2": {},
    "glm4": {"head_dim": 8},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.3},
    "bloom": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
    },
}
"""transformers' name of an architecture → what its config has beside the usual: those that differ in how
blocks are built."""


def config(architecture: str) -> Any:
    from transformers import AutoConfig, Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig

    ids = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    if architecture in FAMILIES:
        return AutoConfig.for_model(
            architecture, **ids, **shape, num_key_value_heads=2, **FAMILIES[architecture]
        )
    if architecture == "llama":
        return LlamaConfig(**ids, **shape, num_key_value_heads=2)
    if architecture == "gemma2":  # softcaps attention, which torch's fused attention cannot
        return Gemma2Config(
            **ids, **shape, num_key_value_heads=1, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
        )
    if architecture == "gemma3":
        return Gemma3TextConfig(
            **ids, **shape, num_key_value_heads=1, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
        )
    return GPT2Config(
        **ids,
        n_embd=D_MODEL,
        n_layer=LAYERS,
        n_head=4,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def save_model(
    folder: Path, architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """A randomly initialised model of 4 blocks, 32 wide, with its tokenizer; residuals are made large enough
    to be real work."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(architecture), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
                parameter.mul_(4)  # the default .02 leaves the blocks nearly silent
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Byte-level, trained on nothing: every byte is a token, and <s> begins a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


_PLAIN = ["q_proj", "o_proj", "down_proj"]
TARGETS = {name: _PLAIN for name in ("llama", "gemma2", "gemma3", *FAMILIES)} | {
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense"],
    "phi3": ["qkv_proj", "down_proj"],
    "gpt_oss": ["q_proj", "o_proj"],  # its experts are no linear layers
    "qwen3_moe": ["q_proj", "o_proj"],
}


def save_adapter(
    folder: Path,
    model_folder: Path,
    architecture: str = "llama",
    *,
    rank: int = 4,
    seed: int = 0,
    scale: float = 0.05,
    targets: Sequence[str] = (),
    **lora: Any,
) -> Path:
    """A LoRA adapter with random A and B (PEFT's own start has B = 0, which changes nothing); `scale=0` gives
    that start."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    settings: dict[str, Any] = {
        "lora_alpha": 2 * rank,
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": architecture == "gpt2",
    } | lora
    peft_model = get_peft_model(
        model, LoraConfig(r=rank, target_modules=list(targets) or TARGETS[architecture], **settings)
    )
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    peft_model.save_pretrained(folder)
    return folder
