"""Dictionaries whose metadata say that they read something else than raw activations."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.made_for import BaseModel
from deltasae_ray.sae.metadata import check_metadata
from deltasae_ray.sae.saelens import Reference, load_reference

D_MODEL, D_SAE = 6, 10
OLD = {
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "model_name": "gpt2-small",
    "hook_name": "blocks.3.hook_resid_post",
    # fmt: skip
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
}
"""cfg.json of SAELens before version 6."""


def weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL), "b_enc": (D_SAE,), "b_dec": (D_MODEL,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def write(
    folder: Path,
    metadata: dict[str, Any],
    extra: dict[str, torch.Tensor] | None = None,
    *,
    old: bool = False,
    **cfg: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights() | (extra or {}), folder / "sae_weights.safetensors")
    named = {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post"} | metadata
    new = {"architecture": "standard", "d_in": D_MODEL, "d_sae": D_SAE, "metadata": named}
    (folder / "cfg.json").write_text(json.dumps((OLD | metadata if old else new) | cfg))
    return folder


def load(folder: Path) -> Dictionary:
    return load_reference(Reference(3, folder), BaseModel("gpt2", "gpt2", "gpt2", D_MODEL))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (
            {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
            "center_writing_weights=True.*mean over d_model",
        ),
        (
            {"model_from_pretrained_kwargs": {"fold_ln": True, "subtract_embedding": True}},
            "subtract_embedding=True.*not known",
        ),
        ({"model_from_pretrained_kwargs": "centred"}, "must be a mapping"),
        ({"hook_head_index": 0}, "one attention head"),
        ({"hook_name_out": "blocks.3.hook_mlp_out"}, "transcoder"),
        ({"center_writing_weights": True}, "center_writing_weights"),
        ({"activation_scale": 0.4}, "activation_scale=0.4.*take activation_scale out"),
        ({"norm_scaling_factor": 0.03}, "norm_scaling_factor"),
        ({"mean_subtracted": True}, "mean_subtracted"),
        ({"input_transform": "whiten"}, "input_transform"),
    ],
)
def test_metadata_that_change_the_input_are_refused_by_their_key(
    metadata: dict[str, Any], said: str, old: bool, tmp_path: Path
) -> None:
    folder = write(tmp_path / "layer_03", metadata, old=old)
    with pytest.raises(DictionaryError, match=said):
        load(folder)
    if not old:
        with pytest.raises(DictionaryError, match=said):
            Dictionary.load(folder)


@pytest.mark.parametrize(
    "cfg",
    [
        {"normalize_activations": "layer_norm"}, {"normalize_activations": "constant_norm_rescale"},
        {"normalize_activations": "expected_average_only_in"},
        {"normalize_activations": "covariance_whitening"}, {"normalize_activations": "of_tomorrow"},
        {"normalize_activations": True},
        {"reshape_activations": "hook_z"}, {"apply_b_dec_to_input": "no"},
        {"rescale_acts_by_decoder_norm": "yes"}, {"finetuning_scaling_factor": True},
        {"activation_fn": "tanh-relu"}, {"d_out": D_MODEL + 1}, {"d_in": True}, {"architecture": "gated"},
        {"architecture": ["topk"]},
        {"architecture": "topk", "k": True}, {"architecture": "topk", "k": 3,
            "activation_fn_kwargs": {"k": 5}}, {"input_scale": 2.0},
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_folded_is_refused(cfg: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="layer_03"):
        load(write(tmp_path / "layer_03", {}, **cfg))


def test_weights_that_are_not_those_of_an_encoder_and_a_decoder_are_refused(tmp_path: Path) -> None:
    bad = {
        "scaling_factor": torch.full((D_SAE,), 2.0),
        "r_mag": torch.zeros(D_SAE),
        "W_enc": torch.ones(D_MODEL, D_SAE, dtype=torch.int8),
        "b_dec": torch.zeros(D_MODEL + 1),
        "b_enc": torch.full((D_SAE,), torch.nan),
        "W_dec": torch.zeros(D_SAE, D_MODEL, dtype=torch.complex64),
    }
    for name, tensor in bad.items():
        with pytest.raises(DictionaryError, match=name):
            load(write(tmp_path / "layer_03", {}, {name: tensor}, apply_b_dec_to_input=False))
    assert load(write(tmp_path / "layer_03", {}, {"scaling_factor": torch.ones(D_SAE)})).d_sae == D_SAE


def test_centred_writing_weights_of_an_rms_norm_model_change_nothing(tmp_path: Path) -> None:
    kwargs = {
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "model_name": "google/gemma-2-2b",
    }
    base = BaseModel("gemma", "google/gemma-2-2b", "gemma2", D_MODEL)
    plain = load_reference(Reference(3, write(tmp_path / "a", {"model_name": "google/gemma-2-2b"})), base)
    torch.testing.assert_close(
        load_reference(Reference(3, write(tmp_path / "b", kwargs)), base).W_enc, plain.W_enc
    )


def test_what_may_matter_is_told_and_what_cannot_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harmless = {
        "model_from_pretrained_kwargs": {
            "center_writing_weights": False,
            "fold_ln": True,
            "center_unembed": True,
            "dtype": "bfloat16",
        },
        # fmt: skip
        "prepend_bos": True,
        "context_size": 1024,
        "seqpos_slice": [None],
        "l0": 31.5,
        "hook_head_index": None,
    }
    assert load(write(tmp_path / "layer_03", harmless)).meta == {
        "hookpoint": "blocks.3.hook_resid_post",
        "model": "gpt2-small",
    }
    check_metadata(OLD | harmless)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load(
            write(
                tmp_path / "layer_03",
                {"prepend_bos": False, "seqpos_slice": [5, None], "licence": "MIT", "checkpoint_index": 0},
            )
        )
    for said in ("prepend_bos=false", "seqpos_slice=[5, None]", "licence='MIT'", "checkpoint_index=0"):
        assert said in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3",
        "transformer.h.3",
        "gpt_neox.layers.3",
        "blocks.4.hook_resid_pre",
        "layers.3",
        "h.3.output",
    ],
)
def test_a_hook_of_hugging_face_is_the_same_place(name: str, tmp_path: Path) -> None:
    assert (
        load(write(tmp_path / "layer_03", {"hook_name": name})).meta["hookpoint"]
        == "blocks.3.hook_resid_post"
    )
    metadata = {"hook_name": "blocks.3.hook_resid_post", "hf_hook_name": name}
    assert load(write(tmp_path / "layer_03", metadata)).meta["hookpoint"] == "blocks.3.hook_resid_post"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"hook_name": "blocks.3.hook_resid_pre"}, r"made for blocks\.2\.hook_resid_post"),
        ({"hook_name": "transformer.h.2"}, r"made for blocks\.2"),
        ({"hook_name": "transformer.h.3.mlp"}, r"made for transformer\.h\.3\.mlp"),
        ({"hf_hook_name": "transformer.h.2"}, "two places"),
        ({"hook_name": 3}, "must be a name"),
        ({"model_name": ["gpt2"]}, "must be a name"),
    ],
)
def test_another_place_is_refused_by_either_name(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=said):
        load(write(tmp_path / "layer_03", metadata))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"hook_layer": 7}, "hook_layer=7 of the metadata are two layers"),
        ({"hook_name": None, "hook_layer": 5}, "made for layer 5, but stands for layer 3"),
    ],
)
def test_a_layer_beside_the_name_of_the_place_is_held_against_it(
    metadata: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DictionaryError, match=said):
        load(write(tmp_path / "layer_03", metadata))
    load(write(tmp_path / "other", {**metadata, "hook_layer": 3}))
