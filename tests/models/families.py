"""Tiny configurations of every family of causal language models that transformers knows, made by shrinking its own defaults."""

from typing import Any

SMALL: dict[str, int] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "d_model": 32, "n_embd": 32, "n_layer": 3, "n_layers": 3, "n_head": 4,
    "n_heads": 4, "num_layers": 3, "num_heads": 4, "n_positions": 64, "n_ctx": 64, "ffn_dim": 48, "decoder_layers": 3, "encoder_layers": 3,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2,
    "moe_k": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16,
    "embedding_size": 32, "word_embed_proj_dim": 32, "rotary_dim": 8, "state_size": 4, "time_step_rank": 4, "d_inner": 48, "dff": 48,
    "n_inner": 48, "emb_dim": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "lru_width": 32, "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_d_state": 4, "mamba_d_ssm": 64, "n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "n_group": 1, "topk_group": 1, "global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 4, "max_position": 64, "dim_model": 32, "dim_head": 8, "dim_ff": 48,
}  # fmt: skip
"""A word of a config → its value here, where the family has the word."""


def tiny_config(family: str) -> Any:
    """The family's default config, shrunk.

    Raises:
        Exception: transformers' own, where the small numbers contradict each other in this family.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[family]
    default = kind().to_dict()
    return kind(**_small(default))


def _small(default: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in default.items():
        if name in SMALL and (isinstance(value, int) or value is None) and not isinstance(value, bool):
            small[name] = SMALL[name] if value is not None else value
        elif isinstance(value, dict) and "vocab_size" in value:
            small[name] = {**_small(value), "model_type": value.get("model_type", "")}
    if isinstance(default.get("layer_types"), list):
        small["layer_types"] = default["layer_types"][:3]
    return small
