"""Reference dictionaries of other makers, written here in their layouts: nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.fitting import fit_dictionary
from deltasae_ray.sae.made_for import BaseModel, check_model, plain_name, scope_of
from deltasae_ray.sae.saelens import check_reference, load_reference, resolve_references
from tests.sae.planted import planted

D_MODEL, D_SAE = 24, 60


def gemma_scope_parameters() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "w_enc": torch.randn(D_MODEL, D_SAE, generator=g),
        "w_dec": torch.randn(D_SAE, D_MODEL, generator=g) * torch.rand(D_SAE, 1, generator=g),
        "b_enc": torch.randn(D_SAE, generator=g),
        "b_dec": torch.randn(D_MODEL, generator=g),
        "threshold": torch.rand(D_SAE, generator=g) * 3,
    }


def write_gemma_scope_2(folder: Path, layer: int) -> Path:
    """google/gemma-scope-2-…: resid_post/layer_12_width_16k_l0_medium/{config.json, params.safetensors}."""
    folder.mkdir(parents=True)
    save_file(gemma_scope_parameters(), folder / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-3-270m",
        "hf_hook_point_in": f"model.layers.{layer}.output",
        "width": D_SAE,
        "l0": 9,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_gemma_scope_1(folder: Path) -> Path:
    """google/gemma-scope-…-pt-res: layer_20/width_16k/average_l0_71/params.npz."""
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz", **{name: tensor.numpy() for name, tensor in gemma_scope_parameters().items()}
    )
    return folder


def load(
    source: str | Path, layer: int = 12, d_model: int = D_MODEL, made_for: str = "", **base: str
) -> Dictionary:
    model = BaseModel(**{"label": "base", "name": "", "kind": "", "d_model": d_model} | base)
    return load_reference(resolve_references(str(source), [layer])[layer], model, made_for)


def published_forward(x: torch.Tensor) -> torch.Tensor:
    """JumpReLU as Gemma Scope's authors write it: b_dec is not subtracted from the input."""
    p = gemma_scope_parameters()
    pre = x @ p["w_enc"] + p["b_enc"]
    return ((pre > p["threshold"]) * pre.relu()) @ p["w_dec"] + p["b_dec"]


X = 2 * torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(7))


def test_gemma_scope_2_folder_gives_the_published_forward_pass(tmp_path: Path) -> None:
    write_gemma_scope_2(tmp_path / "layer_12_width_16k_l0_medium", 12)
    write_gemma_scope_2(tmp_path / "layer_5_width_16k_l0_medium", 5)
    dictionary = load(tmp_path)
    torch.testing.assert_close(
        dictionary.decode(dictionary.encode(X)), published_forward(X), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert (dictionary.architecture, dictionary.meta["hookpoint"]) == (
        "jumprelu",
        "blocks.12.hook_resid_post",
    )
    assert (
        load(str(tmp_path / "layer_{layer}_width_16k_l0_medium"), 5).meta["hookpoint"]
        == "blocks.5.hook_resid_post"
    )


def test_gemma_scope_1_arrays_give_the_published_forward_pass(tmp_path: Path) -> None:
    write_gemma_scope_1(tmp_path / "layer_12")
    torch.testing.assert_close(
        (d := load(tmp_path)).decode(d.encode(X)), published_forward(X), rtol=1e-5, atol=1e-4
    )


def test_gemma_scope_arrays_with_pickled_objects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "layer_12").mkdir()
    np.savez(tmp_path / "layer_12/params.npz", w_enc=np.array([{"code": 1}], dtype=object))
    with pytest.raises(DictionaryError, match="layer_12"):
        load(tmp_path)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "batchtopk"])
def test_saelens_folder_gives_saelens_forward_pass(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    words = {"d_in": D_MODEL, "d_sae": D_SAE} | ({"k": 6} if "topk" in architecture else {})
    if architecture in (
        "topk",
        "batchtopk",
    ):  # as its trainer saves them: decoder norms rescale the codes; BatchTopK becomes JumpReLU
        kind, config = get_sae_training_class(architecture)
        sae = kind(config(**words))
        fill(sae)
        if architecture == "batchtopk":
            sae.topk_threshold.fill_(0.7)
        sae.save_inference_model(tmp_path / "layer_12")
        sae = SAE.load_from_disk(tmp_path / "layer_12")
    else:
        sae = SAE.from_dict(
            {"architecture": architecture, "apply_b_dec_to_input": architecture == "standard", "metadata": {}}
            | words
        )
        fill(sae)
        sae.save_model(tmp_path / "layer_12")
    dictionary = load(tmp_path)
    z = dictionary.encode(X)
    assert 0.5 < float((z > 0).sum(dim=1).float().mean()) < D_SAE
    torch.testing.assert_close(dictionary.decode(z), sae(X).detach(), rtol=1e-5, atol=1e-4)


def fill(sae: torch.nn.Module) -> None:
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=g).abs()
                if parameter.ndim == 1
                else torch.randn(parameter.shape, generator=g)
            )


def test_a_folder_from_before_saelens_6_is_read_as_the_topk_it_is(tmp_path: Path) -> None:
    rows = torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(1))
    dictionary = fit_dictionary(rows, d_sae=32, k=4, steps=5)
    folder = dictionary.save(tmp_path / "layer_12")
    old = {
        "d_in": D_MODEL,
        "d_sae": 32,
        "dtype": "float32",
        "device": "cpu",
        "hook_name": "blocks.12.hook_resid_post",
        "architecture": "standard",
    }
    (folder / "cfg.json").write_text(
        json.dumps(
            old
            | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": "none"}
        )
    )
    found = load(tmp_path)
    assert (found.architecture, found.k) == ("topk", 4)
    torch.testing.assert_close(found.encode(rows), dictionary.encode(rows))


def test_our_own_folders_are_references(tmp_path: Path) -> None:
    rows = torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(1))
    fit_dictionary(rows, d_sae=32, k=4, steps=5).save(tmp_path / "layer_09")
    assert load(tmp_path, 9).d_sae == 32


def test_a_wrong_hookpoint_and_a_wrong_width_are_caught(tmp_path: Path) -> None:
    write_gemma_scope_2(tmp_path / "layer_12", 11)
    with pytest.raises(DictionaryError, match=r"blocks\.11\.hook_resid_post.*blocks\.12"):
        load(tmp_path)
    write_gemma_scope_2(tmp_path / "layer_13", 13)
    with pytest.raises(DictionaryError, match="d_model=24.*640"):
        load(tmp_path, 13, d_model=640)


def test_a_reference_for_another_model_of_the_same_width_is_caught_before_work_starts(tmp_path: Path) -> None:
    write_gemma_scope_2(tmp_path / "layer_12", 12)
    for base in (
        {"name": "google/gemma-3-270m"},
        {"name": "google/gemma-3-270m-it"},
        {"kind": "gemma3_text"},
        {},
    ):
        assert load(tmp_path, **base).meta["model"] == "gemma-3-270m"
    with pytest.raises(DictionaryError, match=r"gemma-3-270m.*model\.base=mine is Qwen/Qwen3-0\.6B"):
        load(tmp_path, label="mine", name="Qwen/Qwen3-0.6B", kind="qwen3")
    with pytest.raises(DictionaryError, match=r"gemma-3-270m.*/a/folder is of the family llama"):
        load(tmp_path, label="/a/folder", kind="llama")
    assert load(tmp_path, name="us/gemma-tuned-by-us", kind="gemma3_text", made_for="google/gemma-3-270m")


def test_siblings_share_a_name_and_versions_do_not() -> None:
    assert (
        plain_name("https://huggingface.co/google/gemma-2-9b-it")
        == plain_name("gemma-2-9b")
        != plain_name("google/gemma-3-9b-pt")
    )
    assert (
        plain_name("meta-llama/Meta-Llama-3-8B-Instruct")
        == "llama-3-8b"
        != plain_name("meta-llama/Llama-3.1-8B")
    )
    assert plain_name("mistralai/Mistral-7B-v0.1") == plain_name("mistral-7b") and plain_name(
        "gpt2-small"
    ) == plain_name("openai-community/gpt2")
    of_gemma = BaseModel("/folder", "", "gemma3_text", 640)
    for name in ("google/gemma-2b", "gemma-2-2b"):
        with pytest.raises(DictionaryError, match="family gemma3_text"):
            check_model("it", name, of_gemma)
    check_model("it", "a-model-of-no-known-family", of_gemma)


def test_gemma_scope_arrays_tell_model_and_hookpoint_by_their_repository(tmp_path: Path) -> None:
    def arrays(kind: str) -> str:
        write_gemma_scope_1(
            (root := tmp_path / f"models--google--gemma-scope-9b-pt-{kind}/snapshots/0")
            / "layer_12/width_16k/average_l0_71"
        )
        return f"{root}/layer_{{layer}}/width_16k/average_l0_71"

    place = arrays("res")
    assert load(place, kind="gemma2").meta == {
        "hookpoint": "blocks.12.hook_resid_post",
        "model": "google/gemma-2-9b",
    }
    with pytest.raises(DictionaryError, match=r"google/gemma-2-9b.*Llama-3"):
        load(place, name="meta-llama/Llama-3-9B")
    with pytest.raises(DictionaryError, match="hook_mlp_out"):
        load(arrays("mlp"))
    assert scope_of("google/gemma-scope-2-4b-it/resid_post/layer_9") == ("google/gemma-3-4b-it", "resid_post")
    assert scope_of("google/gemma-scope-2-270m-pt") == ("google/gemma-3-270m", "")


def test_the_input_of_the_next_block_is_the_same_hookpoint(tmp_path: Path) -> None:
    rows = torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(1))
    dictionary = fit_dictionary(rows, d_sae=32, k=4, steps=2)
    dictionary.meta["hookpoint"] = "blocks.13.hook_resid_pre"
    dictionary.save(tmp_path / "layer_12")
    assert load(tmp_path).d_sae == 32


def test_a_missing_or_doubled_layer_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    write_gemma_scope_1(tmp_path / "layer_5_width_16k")
    (tmp_path / "layer_5_width_65k").mkdir()
    (tmp_path / "layer_50").mkdir()
    with pytest.raises(DictionaryError, match="2 folders for layer 5"):
        resolve_references(str(tmp_path), [5])
    with pytest.raises(DictionaryError, match="0 folders for layer 9"):
        resolve_references(str(tmp_path), [9])
    with pytest.raises(DictionaryError, match="layer_9_width"):
        resolve_references(f"{tmp_path}/layer_{{layer}}_width_16k", [5, 9])
    with pytest.raises(DictionaryError, match="no folder"):
        resolve_references("nowhere", [5])


def test_releases_are_resolved_without_a_network() -> None:
    found = resolve_references("gemma-scope-2-270m-pt-res/layer_{layer}_width_16k_l0_medium", [9, 12])
    assert (found[12].release, found[12].sae_id) == (
        "gemma-scope-2-270m-pt-res",
        "layer_12_width_16k_l0_medium",
    )
    with pytest.raises(
        DictionaryError, match=r"google/gemma-3-270m.*google/gemma-3-1b-pt"
    ):  # and nothing was downloaded
        load_reference(
            found[12], BaseModel("google/gemma-3-1b-pt", "google/gemma-3-1b-pt", "gemma3_text", 1152)
        )
    by_id = resolve_references("gemma-scope-9b-pt-res", [5], ids={5: "layer_5/width_16k/average_l0_20"})
    assert str(by_id[5]) == "gemma-scope-9b-pt-res/layer_5/width_16k/average_l0_20"
    with pytest.raises(DictionaryError, match="layer_7_width_16k_l0_medium"):
        resolve_references("gemma-scope-2-270m-pt-res/layer_{layer}_width_16k_l0_medium", [7])
    with pytest.raises(DictionaryError, match="no release"):
        resolve_references("no-such-release/layer_{layer}", [7])
    with pytest.raises(DictionaryError, match="layers \\[12\\]"):
        resolve_references("gemma-scope-9b-pt-res", [5, 12], ids={5: "layer_5/width_16k/average_l0_20"})


@pytest.fixture(scope="module")
def base() -> tuple[torch.Tensor, Dictionary]:
    world = planted(0, rows=4000, d_model=64, subspace=40, atoms=100)
    x = 30 * world.x + 3
    return x, fit_dictionary(x, d_sae=256, k=8, steps=200)


def test_a_fitting_reference_passes_the_check(base: tuple[torch.Tensor, Dictionary]) -> None:
    assert check_reference(base[1], base[0]) < 0.5
    assert check_reference(base[1], base[0].numpy()) < 0.5


def test_a_topk_read_as_relu_is_caught_on_base_activations(base: tuple[torch.Tensor, Dictionary]) -> None:
    from dataclasses import replace

    with pytest.raises(DictionaryError, match="read as ReLU"):
        check_reference(replace(base[1], architecture="standard", k=0), base[0])


def test_wrong_normalisation_is_caught_on_base_activations(base: tuple[torch.Tensor, Dictionary]) -> None:
    from dataclasses import replace

    x, dictionary = base
    z = dictionary.encode(x)
    threshold = torch.full((256,), float(z.masked_fill(z == 0, torch.inf).amin(dim=1).mean()))
    raw = replace(dictionary, architecture="jumprelu", k=0, threshold=threshold)
    assert check_reference(raw, x) < 0.5
    factor = (64 / float(x.square().sum(1).mean())) ** 0.5
    normalised = replace(
        raw, b_enc=raw.b_enc * factor, b_dec=raw.b_dec * factor, threshold=threshold * factor
    )
    with pytest.raises(DictionaryError, match="normalised activations"):
        check_reference(normalised, x)


def test_a_reference_for_another_place_is_caught_on_base_activations(
    base: tuple[torch.Tensor, Dictionary],
) -> None:
    turned = base[0] @ torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    with pytest.raises(DictionaryError, match="another layer or hookpoint"):
        check_reference(base[1], turned)
