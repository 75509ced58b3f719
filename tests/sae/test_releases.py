"""SAELens releases opened from the hub's cache, laid out here as the hub's client does, without a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.made_for import BaseModel
from deltasae_ray.sae.saelens import load_reference, resolve_references
from tests.sae.test_saelens import (
    D_MODEL,
    D_SAE,
    X,
    gemma_scope_parameters,
    published_forward,
    write_gemma_scope_2,
)

COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def folder(hub: Path, repository: str, path: str) -> Path:
    """Where the client keeps a repository's folder; not made yet."""
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(COMMIT)
    return root / "snapshots" / COMMIT / path


def opened(source: str, layer: int, name: str, d_model: int = D_MODEL) -> Dictionary:
    base = BaseModel(name, name, "", d_model)
    return load_reference(resolve_references(source, [layer])[layer], base)


def test_a_release_of_gemma_scope_2_is_opened_from_the_cache(hub: Path) -> None:
    write_gemma_scope_2(
        folder(hub, "google/gemma-scope-2-270m-pt", "resid_post/layer_12_width_16k_l0_medium"), 12
    )
    source = "gemma-scope-2-270m-pt-res/layer_{layer}_width_16k_l0_medium"
    dictionary = opened(source, 12, "google/gemma-3-270m")
    torch.testing.assert_close(
        dictionary.decode(dictionary.encode(X)), published_forward(X), rtol=1e-5, atol=1e-4
    )
    assert dictionary.meta["hookpoint"] == "blocks.12.hook_resid_post"
    with pytest.raises(DictionaryError, match="layer_9_width_16k_l0_medium cannot be loaded"):
        opened(source, 9, "google/gemma-3-270m")


def test_a_release_of_gemma_scope_2_without_config_is_known_by_its_path(hub: Path) -> None:
    place = write_gemma_scope_2(
        folder(hub, "google/gemma-scope-2-270m-pt", "resid_post/layer_12_width_16k_l0_medium"), 12
    )
    (place / "config.json").unlink()
    assert opened(
        "gemma-scope-2-270m-pt-res/layer_{layer}_width_16k_l0_medium", 12, "google/gemma-3-270m"
    ).meta == {"hookpoint": "blocks.12.hook_resid_post", "model": "google/gemma-3-270m"}


def test_a_release_in_saelens_own_layout_goes_through_its_loader(hub: Path) -> None:
    place = folder(hub, "ctigges/pythia-70m-deduped__res-sm_processed", "4-res-sm")
    place.mkdir(parents=True)
    g = torch.Generator().manual_seed(2)
    weights = {
        "W_enc": torch.randn(D_MODEL, D_SAE, generator=g),
        "W_dec": torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=g), dim=1),
        "b_enc": torch.randn(D_SAE, generator=g),
        "b_dec": torch.randn(D_MODEL, generator=g),
    }
    save_file(weights, place / "sae_weights.safetensors")
    config = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "architecture": "standard",
        "hook_name": "blocks.4.hook_resid_post",
        # fmt: skip
        "model_name": "pythia-70m-deduped",
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    (place / "cfg.json").write_text(json.dumps(config))
    dictionary = opened(
        "pythia-70m-deduped-res-sm/blocks.{layer}.hook_resid_post", 4, "EleutherAI/pythia-70m-deduped"
    )
    expected = ((X - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu() @ weights[
        "W_dec"
    ] + weights["b_dec"]
    torch.testing.assert_close(dictionary.decode(dictionary.encode(X)), expected, rtol=1e-5, atol=1e-4)
    assert dictionary.meta == {"hookpoint": "blocks.4.hook_resid_post", "model": "pythia-70m-deduped"}
    with pytest.raises(DictionaryError, match=r"pythia-70m-deduped.*gpt-neox-20b"):
        opened("pythia-70m-deduped-res-sm/blocks.{layer}.hook_resid_post", 4, "EleutherAI/gpt-neox-20b")


@pytest.mark.slow
def test_a_release_of_gemma_scope_1_goes_through_saelens_loader(hub: Path) -> None:
    """At its true size, which the loader knows by heart: of 16,384 latents 60 have weights, and the threshold
    of the others is out of reach."""
    d_model, width, path = 2304, 16_384, "layer_12/width_16k/average_l0_82"
    small = {name: tensor.numpy() for name, tensor in gemma_scope_parameters().items()}
    place = folder(hub, "google/gemma-scope-2b-pt-res", path)
    place.mkdir(parents=True)
    whole = {
        "W_enc": np.zeros((d_model, width), np.float16),
        "W_dec": np.zeros((width, d_model), np.float16),
        "b_enc": np.zeros(width, np.float32),
        "b_dec": np.zeros(d_model, np.float32),
        "threshold": np.full(width, 1e9, np.float32),
    }
    whole["W_enc"][:D_MODEL, :D_SAE], whole["W_dec"][:D_SAE, :D_MODEL] = small["w_enc"], small["w_dec"]
    whole["b_enc"][:D_SAE], whole["b_dec"][:D_MODEL], whole["threshold"][:D_SAE] = (
        small[n] for n in ("b_enc", "b_dec", "threshold")
    )
    np.savez_compressed(place / "params.npz", **whole)
    dictionary = opened(
        f"gemma-scope-2b-pt-res/{path.replace('12', '{layer}')}", 12, "google/gemma-2-2b-it", d_model
    )
    x = torch.nn.functional.pad(X, (0, d_model - D_MODEL))
    found = dictionary.decode(dictionary.encode(x))
    torch.testing.assert_close(
        found[:, :D_MODEL], published_forward(X), rtol=1e-2, atol=2e-2
    )  # weights are rounded to fp16
    assert not found[:, D_MODEL:].any() and dictionary.meta["hookpoint"] == "blocks.12.hook_resid_post"
