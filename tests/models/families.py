"""Tiny configurations of every family of causal language models that transformers knows, made by shrinking
its own defaults."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach, import_adapter
from deltasae_ray.models.capture import deltas, residuals
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import check_blocks, empty_model, load_model
from deltasae_ray.models.source import resolve_model
from deltasae_ray.models.stream import check_stream, check_width
from deltasae_ray.storage import Storage

LARGEST = 3_000_000
"""Parameters above which a family's default config did not shrink."""
SMALL: dict[str, int] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "d_model": 32, "n_embd": 32,
    "n_layer": 3, "n_layers": 3, "n_head": 4,
    "n_heads": 4, "num_layers": 3, "num_heads": 4, "n_positions": 64, "n_ctx": 64, "ffn_dim": 48,
    "decoder_layers": 3, "encoder_layers": 3,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2,
    "moe_k": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 16,
    "embedding_size": 32, "word_embed_proj_dim": 32, "rotary_dim": 8, "state_size": 4, "time_step_rank": 4,
    "d_inner": 48, "dff": 48,
    "n_inner": 48, "emb_dim": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "lru_width": 32,
    "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_d_state": 4, "mamba_d_ssm": 64, "n_groups": 1, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "n_group": 1, "topk_group": 1, "global_head_dim": 16,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 4, "max_position": 64, "dim_model": 32,
    "dim_head": 8, "dim_ff": 48,
}  # fmt: skip
"""A word of a config → its value here, where the family has the word."""

OVER: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "lfm3": {
        "layer_types": ["full_attention", "conv", "full_attention"]
    },  # the adapter is to move the first block
}
"""What else a family's config must say."""

# lists
HOLD = frozenset({
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bamba", "bart", "beam",
    "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blenderbot-small", "bloom", "codegen",
    "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "deepseek_v3", "deepseek_v32", "diffllama",
    "doge", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "flex_olmo",
    "flint", "fuyu", "gemma", "gemma2", "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified",
    "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt-sw3",
    "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite",
    "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium",
    "hy_v3", "hyperclovax", "inkling2_text", "inkling_text", "internlm3", "iquestcoder", "jais2",
    "jamba", "jetmoe", "kolibri1", "laguna", "lfm2", "lfm3", "llama", "marian", "mbart", "mellum",
    "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral3",
    "mistral", "mixtral", "mpt", "mvp", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "openai-gpt",
    "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next",
    "recurrent_gemma", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "trocr",
    "vaultgemma", "whisper", "xglm", "xlstm", "youtu",
})  # fmt: skip
"""Families whose deltas are those of plain PEFT."""
REFUSED = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra",
    "emu3", "ernie", "hrm_text", "hy_v4", "llama4", "llama4_text", "megatron-bert", "mllama",
    "modernbert-decoder", "prophetnet", "qwen4_exp", "qwen4_exp_text", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "rwkv", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet",
})  # fmt: skip
"""Families that are refused, most by the plan, the others by the first passes: their blocks are not found,
are not as many as the config counts, or do not hand on one residual stream."""
UNBUILT = frozenset({
    "bailing_hybrid", "blt", "cohere_compass_text", "dbrx", "deepseek_v2", "deepseek_v4", "dots1",
    "dots3_note", "dots3_note_text", "falcon_mamba", "gemma3", "gemma3n", "gemma3n_text",
    "gemma4_assistant", "gemma4_unified_assistant", "git", "got_ocr2", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "kimi_linear", "lfm2_moe", "longcat_flash", "mamba", "mamba2", "ministral",
    "moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "nemotron", "nemotron_h",
    "olmo_hybrid", "phi4_multimodal", "reformer", "roc_bert", "xmod", "zamba", "zamba2", "zaya",
})  # fmt: skip
"""Families that transformers or PEFT cannot run from a small config: they say so themselves."""
# end of lists


def tiny_config(family: str) -> Any:
    """The family's default config, shrunk.

    Raises:
        Exception: transformers' own, where the small numbers contradict each other in this family.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[family]
    return kind(**{**_small(kind().to_dict()), **OVER.get(family, {})})


def _small(default: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in default.items():
        if name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            small[name] = SMALL[name]
        elif isinstance(value, dict) and "vocab_size" in value:
            small[name] = {**_small(value), "model_type": value.get("model_type", "")}
    if isinstance(default.get("layer_types"), list):
        small["layer_types"] = default["layer_types"][:3]
    if "kv_lora_rank" in default and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def ids() -> torch.Tensor:
    return torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def built(family: str, folder: Path) -> str:
    """Saves a tiny model of the family and an adapter of its attention's linear modules; says why not where
    transformers or PEFT cannot."""
    try:
        config = tiny_config(family)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            return f"{size:,} parameters"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            model(input_ids=ids(), use_cache=False)
        model.save_pretrained(folder / "model")
        heads = {id(model.get_output_embeddings())}
        linear = [
            n
            for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear | Conv1D) and id(m) not in heads
        ]
        attention = [
            n for n in linear if "att" in n and "gate" not in n
        ] or linear  # PEFT turns linear modules of experts into other kinds of targets
        lora = LoraConfig(r=2, target_modules=attention, task_type="CAUSAL_LM", init_lora_weights=False)
        adapted = get_peft_model(model, lora).eval()
        with torch.no_grad():
            adapted(input_ids=ids(), use_cache=False)
        adapted.save_pretrained(folder / "adapter")
    except Exception as e:  # whatever they say is theirs
        return f"{type(e).__name__}: {str(e)[:120]}"
    return ""


def outcome(folder: Path) -> str:
    """ "refused", or "holds": the deltas are those of plain PEFT, and no position sees a later one."""
    base = folder / "model"
    try:
        source = resolve_model(ModelConfig(base=str(base)))
        empty = empty_model(base)
        check_blocks(empty, source.num_layers)
        check_width(empty, source.d_model)
    except ModelError:
        return "refused"
    loaded = load_model(base)
    try:
        check_stream(loaded)
    except ModelError:
        return "refused"
    storage = Storage(str(folder / "root"))
    ref = import_adapter(storage, folder / "adapter", "all", empty, base=str(base))
    hookpoints = [Hookpoint(layer) for layer in range(source.num_layers)]
    model = attach(loaded, {"all": storage.local(ref.key)})
    found = dict(deltas(model, ids(), hookpoints, ["all"]))
    later = ids()
    later[:, 8:] = 5
    changed = residuals(model, later, hookpoints)
    for h in hookpoints:
        stream = found["base"][h]
        assert stream.shape == (2, 12, source.d_model), "a block ends in the residual stream"
        assert torch.allclose(stream[:, :8], changed[h][:, :8], rtol=1e-4, atol=1e-5), (
            "a position sees a later one"
        )
    for h, expected in _of_peft(folder, hookpoints).items():
        assert (found["all"][h] - expected).norm() <= 1e-4 * expected.norm() + 1e-6 and expected.any(), (
            "deltas are those of plain PEFT"
        )
    return "holds"


@torch.no_grad()
def _of_peft(folder: Path, hookpoints: list[Hookpoint]) -> dict[Hookpoint, torch.Tensor]:
    """What plain PEFT gives at all blocks but the last, after which a norm may stand; nothing where the
    family shows no hidden states."""
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32), folder / "adapter"
    ).eval()
    adapted = plain(input_ids=ids(), output_hidden_states=True, use_cache=False).hidden_states
    with plain.disable_adapter():
        base = plain(input_ids=ids(), output_hidden_states=True, use_cache=False).hidden_states
    if adapted is None:
        return {}
    return {h: adapted[h.hidden_states_index] - base[h.hidden_states_index] for h in hookpoints[:-1]}
