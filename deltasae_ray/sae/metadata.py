"""What a dictionary's metadata say of the activations that it was trained on: what changes them is never
dropped without a word."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.made_for import has_rms_norm

_LOG = logging.getLogger(__name__)
_COUNTED = {
    "hook_head_index",
    "hook_point_head_index",
    "hook_head_index_out",
    "checkpoint_index",
    "checkpoint_value",
}
"""Keys whose 0 is the first of several."""
_REFUSED = {
    "center_writing_weights": (
        "its model's weights were centred, which takes its mean over d_model off every activation"
    ),
    "hook_head_index": "it reads one attention head",
    "hook_point_head_index": "it reads one attention head",
    "is_transcoder": "it is a transcoder, which predicts another place than it reads",
    "hook_head_index_out": "it writes one attention head",
    "hook_name_out": "it is a transcoder, which predicts another place than it reads",
    "hf_hook_name_out": "it is a transcoder, which predicts another place than it reads",
    "d_out": "it is a transcoder, which predicts another place than it reads",
    "finetuning_scaling_factor": "its codes are scaled after the activation function",
    "skip_connection": "it passes its input on beside its codes",
    "transcode": "it is a transcoder, which predicts another place than it reads",
    "signed": "its codes may be negative",
}
"""Key → why raw activations of an unprocessed model would be encoded or decoded wrongly."""
_WARNED = {
    "seqpos_slice": "it was trained on some positions only",
    "model_kwargs": "its model was called with arguments of its own",
    "revision": "its model was of that revision",
    "checkpoint_index": "its model was of that checkpoint",
    "checkpoint_value": "its model was of that checkpoint",
    "hf_model": "its model was handed over by its maker",
    "load_in_8bit": "its model was quantised",
    "load_in_4bit": "its model was quantised",
    "quantization_config": "its model was quantised",
}
"""Key → what a user must know of the activations that it saw; base activations show whether it matters."""
_OF_THE_INPUT = re.compile(
    r"norm|scal|cent(er|re)|mean|whiten|subtract|shift|offset|fold|project|rotat|transform|reshape|input|prepro|std|bias"
)
"""Words in the name of an unknown key that would change what goes in."""
_PROCESSING = """
fold_ln center_unembed fold_value_biases refactor_factored_attn_matrices device n_devices move_to_device
dtype torch_dtype trust_remote_code token use_auth_token cache_dir local_files_only low_cpu_mem_usage
device_map attn_implementation default_padding_side tokenizer use_cache first_n_layers n_ctx
default_prepend_bos
"""
"""Arguments of TransformerLens' and transformers' loaders after which the residual stream is what it was, but
for rounding."""
_HARMLESS = """
architecture d_in d_sae k dtype device apply_b_dec_to_input normalize_activations reshape_activations
metadata activation_fn activation_fn_str activation_fn_kwargs rescale_acts_by_decoder_norm hook_name
hook_point hf_hook_name hook_layer hook_point_layer model_name model_class_name
model_from_pretrained_kwargs expansion_factor num_latents activation normalize_decoder multi_topk
sae_lens_version sae_lens_training_version training_architecture training_architecture_details
neuronpedia_id l0 num_dead_features hook_eval dataset_path dataset_trust_remote_code streaming
is_dataset_tokenized use_chat_formatting context_size prepend_bos exclude_special_tokens
sequence_separator_token disable_concat_sequences use_cached_activations cached_activations_path
activations_mixing_fraction n_batches_in_buffer training_tokens finetuning_tokens store_batch_size_prompts
store_batch_size train_batch_size_tokens train_batch_size seed act_store_device llm_device
prefetch_llm_batches autocast autocast_lm compile_llm llm_compilation_mode compile_sae
sae_compilation_mode adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps
n_restart_cycles dead_feature_window feature_sampling_window dead_feature_threshold n_eval_batches
eval_batch_size_prompts logger n_checkpoints checkpoint_path save_final_checkpoint output_path
resume_from_checkpoint verbose n_batches_for_norm_estimate l1_coefficient l1_warm_up_steps l0_lambda
l0_warm_up_steps lp_norm jumprelu_bandwidth jumprelu_init_threshold jumprelu_tanh_scale
jumprelu_sparsity_loss_mode pre_act_loss_coefficient aux_loss_coefficient topk_threshold_lr
matryoshka_widths use_sparse_activations decoder_init_norm init_encoder_as_decoder_transpose
normalize_sae_decoder mse_loss_normalization scale_sparsity_penalty_by_decoder_norm b_dec_init_method
decoder_heuristic_init decoder_orthogonal_init noise_scale use_ghost_grads ghost_grads finetuning_method
from_pretrained_path resume run_name log_to_wandb log_activations_store_to_wandb
log_optimizer_state_to_wandb log_weights_to_wandb wandb_project wandb_id wandb_entity wandb_log_frequency
eval_every_n_wandb_logs tokens_per_buffer sae_lens_version_training width type
"""
"""Keys that are read elsewhere in this room, or say how a dictionary was trained, what was measured of it and
where it is shown."""


def check_metadata(cfg: Mapping[str, Any], name: str = "cfg.json") -> None:
    """Refuses metadata after which the dictionary's input is not the raw activation, and warns of what may
    matter.

    Args:
        cfg: a configuration in SAELens' layout; `metadata`, `model_from_pretrained_kwargs` and names at the
            top are all looked at.
        name: what it is called in errors.

    Raises:
        DictionaryError: a key that changes the input or the output, known or by its name, or metadata that is
            no mapping.
    """
    metadata = _mapping(cfg.get("metadata"), "metadata", name)
    facts = {**cfg, **metadata}
    loading = _mapping(facts.get("model_from_pretrained_kwargs"), "model_from_pretrained_kwargs", name)
    for key, value in (*facts.items(), *loading.items()):
        if _is_neutral(key, value):
            continue
        if key == "center_writing_weights" and has_rms_norm(str(facts.get("model_name") or "")):
            continue  # TransformerLens centres only what a LayerNorm reads
        if (
            key == "d_out"
            and value == cfg.get("d_in")
            or key.endswith("_out")
            and value == facts.get(key.removesuffix("_out"))
        ):
            continue
        if key in _REFUSED:
            raise DictionaryError(
                f"{name} says {key}={_short(value)}: {_REFUSED[key]}. Raw activations would be read wrongly:"
                " take a dictionary that was trained on the raw residual stream of the unprocessed model"
            )
        if key in _WARNED:
            _LOG.warning(
                "%s says %s=%s: %s; the FVU on base activations says whether it fits",
                name,
                key,
                _short(value),
                _WARNED[key],
            )
        elif key not in (_PROCESSING if key in loading and key not in facts else _HARMLESS).split():
            _unknown(key, value, name, of_model=key in loading)
    if facts.get("prepend_bos") is False or loading.get("default_prepend_bos") is False:
        _LOG.warning(
            "%s says prepend_bos=false: it saw contexts without the BOS token that stands first in every"
            " context here",
            name,
        )


def _unknown(key: str, value: object, name: str, *, of_model: bool) -> None:
    if of_model or _OF_THE_INPUT.search(key.lower()):
        raise DictionaryError(
            f"{name} says {key}={_short(value)}, which is not known here and may change the activations that"
            f" the dictionary reads: if it does not, take {key} out of the file; if it does, fold it into the"
            " weights first"
        )
    _LOG.warning(
        "%s says %s=%s, which is not known here and is taken to leave the dictionary's input as it is",
        name,
        key,
        _short(value),
    )


def _mapping(value: object, key: str, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DictionaryError(f"{name}: {key} must be a mapping of names to values, not {_short(value)}")
    return value


def _is_neutral(key: str, value: object) -> bool:
    """Whether a value leaves the input as it is, whatever the key may do."""
    if value is None or key in _COUNTED:
        return value is None
    if isinstance(value, (list, tuple)):
        return all(item is None for item in value)
    if value == 1 and value is not True:
        return key not in _REFUSED  # a factor
    return not value or value in ("none", "main")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
