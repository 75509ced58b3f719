"""Folders of sparsify and dictionary_learning, written here in their layouts, and any folder with bytes and
fields gone wrong."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.made_for import BaseModel
from deltasae_ray.sae.saelens import load_reference, resolve_references
from tests.fuzz import LONG, SHORT
from tests.sae.test_saelens import write_gemma_scope_2

D_MODEL, D_SAE, K = 12, 30, 4
G = torch.Generator().manual_seed(3)
ENCODER, DECODER = torch.randn(D_SAE, D_MODEL, generator=G), torch.randn(D_SAE, D_MODEL, generator=G)
B_ENC, B_DEC = torch.randn(D_SAE, generator=G), torch.randn(D_MODEL, generator=G)
X = 2 * torch.randn(40, D_MODEL, generator=G)
SPARSIFY = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": K, "multi_topk": False,
    "skip_connection": False,
            "d_in": D_MODEL, "activation": "topk", "transcode": False}  # fmt: skip


def load(source: Path | str, d_model: int = D_MODEL, **base: str) -> Dictionary:
    model = BaseModel(**{"label": "base", "name": "", "kind": "", "d_model": d_model} | base)
    return load_reference(resolve_references(str(source), [3])[3], model)


def sparsify(folder: Path, weights: dict[str, torch.Tensor] | None = None, **cfg: Any) -> Path:
    """As `sparsify.SparseCoder.save_to_disk` writes a hookpoint, which the folder is named after."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(SPARSIFY | cfg))
    plain = {"encoder.weight": ENCODER, "encoder.bias": B_ENC, "W_dec": DECODER, "b_dec": B_DEC}
    save_file(
        {name: tensor.contiguous() for name, tensor in (plain | (weights or {})).items()},
        folder / "sae.safetensors",
    )
    return folder


def top_k(pre: torch.Tensor) -> torch.Tensor:
    values, indices = pre.relu().topk(K, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def test_a_run_of_sparsify_gives_its_own_forward_pass(tmp_path: Path) -> None:
    sparsify(tmp_path / "layers.3")
    sparsify(tmp_path / "layers.13")
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 2048}))
    for source in (tmp_path, f"{tmp_path}/layers.{{layer}}"):
        dictionary = load(source, kind="gpt_neox")
        expected = top_k((X - B_DEC) @ ENCODER.T + B_ENC) @ DECODER + B_DEC
        torch.testing.assert_close(dictionary.decode(dictionary.encode(X)), expected, rtol=1e-5, atol=1e-4)
        assert dictionary.meta == {"hookpoint": "blocks.3.hook_resid_post", "model": "EleutherAI/pythia-70m"}
    with pytest.raises(DictionaryError, match="pythia-70m"):
        load(tmp_path, kind="llama")
    kept = dictionary.save(tmp_path / "kept")
    torch.testing.assert_close(
        Dictionary.load(kept).decode(dictionary.encode(X)), expected, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("cfg", "weights", "said"),
    [
        ({"activation": "groupmax"}, {}, "groupmax"),
        ({"transcode": True}, {}, "transcode"),
        ({"skip_connection": True}, {}, "skip_connection"),
        ({"signed": True}, {}, "may be negative"),
        ({"k": None}, {}, "k=None"),
        ({"d_in": D_MODEL + 1}, {}, "cfg.json says"),
        ({"num_latents": 2 * D_SAE}, {}, "cfg.json says"),
        ({}, {"W_skip": torch.zeros(D_MODEL, D_MODEL)}, "W_skip"),
        ({}, {"b_dec": torch.full((D_MODEL,), torch.inf)}, "b_dec holds NaN or infinity"),
    ],
)
def test_what_sparsify_can_do_and_we_cannot_is_refused(
    cfg: dict, weights: dict, said: str, tmp_path: Path
) -> None:
    sparsify(tmp_path / "layers.3", weights, **cfg)
    with pytest.raises(DictionaryError, match=f"layers.3.*{said}"):
        load(tmp_path)


def test_another_module_of_the_block_is_another_place(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=r"made for layers\.3\.mlp"):
        load(f"{sparsify(tmp_path / 'layers.3.mlp').parent}/layers.{{layer}}.mlp")


LINEAR = {"encoder.weight": ENCODER, "encoder.bias": B_ENC, "decoder.weight": DECODER.T}
KINDS = {
    "AutoEncoder": LINEAR | {"bias": B_DEC},
    "AutoEncoderTopK": LINEAR | {"b_dec": B_DEC, "k": torch.tensor(K), "threshold": torch.tensor(-1.0)},
    "BatchTopKSAE": LINEAR | {"b_dec": B_DEC, "k": torch.tensor(K), "threshold": torch.tensor(1.5)},
    "JumpReluAutoEncoder": {
        "W_enc": ENCODER.T,
        "b_enc": B_ENC,
        "W_dec": DECODER,
        "b_dec": B_DEC,
        "threshold": torch.full((D_SAE,), 1.5),
    },
}


def learned(
    folder: Path, kind: str, *, io: str = "out", name: str = "resid_post_layer_3", **trainer: Any
) -> dict[str, torch.Tensor]:
    """config.json as dictionary_learning's trainers write it; the weights that its ae.pt holds are
    returned."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "dict_class": kind,
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": name,
    }
    told |= {"layer": 3, "k": K, "lr": 1e-3} | trainer
    (folder / "config.json").write_text(
        json.dumps({"trainer": told, "buffer": {"d_submodule": D_MODEL, "io": io, "ctx_len": 128}})
    )
    return {name: tensor.contiguous() for name, tensor in KINDS.get(kind, KINDS["AutoEncoder"]).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_dictionary_learning_is_read_once_its_pickle_is_converted_by_the_recipe(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "resid_post_layer_3"
    torch.save(learned(folder, kind), folder / "ae.pt")
    with pytest.raises(
        DictionaryError, match=r"dictionary_learning.*pickle, ae\.pt.*never opened"
    ) as refused:
        load(tmp_path)
    (recipe,) = re.findall(r'python -c "(.*)"', str(refused.value))
    if kind == "AutoEncoder":  # the same line for all of them
        subprocess.run([sys.executable, "-c", recipe], cwd=folder, check=True)
    else:
        save_file(learned(folder, kind), folder / "ae.safetensors")
    pre = X @ ENCODER.T + B_ENC - (0 if kind == "JumpReluAutoEncoder" else B_DEC @ ENCODER.T)
    z = {"AutoEncoder": pre.relu(), "AutoEncoderTopK": top_k(pre)}.get(kind, pre.relu() * (pre > 1.5))
    dictionary = load(tmp_path)
    torch.testing.assert_close(
        dictionary.decode(dictionary.encode(X)), z @ DECODER + B_DEC, rtol=1e-5, atol=1e-4
    )
    assert dictionary.meta == {
        "hookpoint": "blocks.3.hook_resid_post",
        "model": "EleutherAI/pythia-70m-deduped",
    }


@pytest.mark.parametrize(
    ("kind", "trainer", "said"),
    [
        ("GatedAutoEncoder", {}, "GatedAutoEncoder"),
        ("AutoEncoder", {"io": "in"}, "io='in'"),
        ("AutoEncoder", {"activation_dim": 7}, "cfg.json says 7"),
        ("AutoEncoder", {"name": "resid_post_layer_4", "layer": 4}, r"blocks\.4\.hook_resid_post"),
        ("AutoEncoder", {"name": "mlp_out_layer_3"}, "mlp_out_layer_3"),
        ("AutoEncoder", {"normalize_activations": True}, "rescaled"),
    ],
)
def test_what_dictionary_learning_can_do_and_we_cannot_is_refused(
    kind: str, trainer: dict, said: str, tmp_path: Path
) -> None:
    save_file(learned(tmp_path / "layer_3", kind, **trainer), tmp_path / "layer_3/ae.safetensors")
    with pytest.raises(DictionaryError, match=f"layer_3.*{said}"):
        load(tmp_path)


def test_a_folder_of_something_else_says_what_it_holds_and_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "layer_3").mkdir()
    (tmp_path / "layer_3/model.gguf").touch()
    with pytest.raises(
        DictionaryError,
        match=r"model\.gguf.*sae_weights\.safetensors.*sae\.safetensors.*ae\.safetensors.*params\.npz",
    ):
        load(tmp_path)
    (tmp_path / "layer_3/cfg.json").write_text("{}")
    (tmp_path / "layer_3/sae.pt").touch()
    with pytest.raises(
        DictionaryError, match=r"(?s)sae\.pt, which could run code and is never opened.*weights_only=True"
    ):
        load(tmp_path)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.none(), max_size=2),
    st.just({"k": 3}),
)
KEYS = st.sampled_from(
    [
        "k",
        "d_in",
        "d_sae",
        "architecture",
        "metadata",
        "normalize_activations",
        "apply_b_dec_to_input",
        "activation_fn",
        "trainer",
        # fmt: skip
        "hook_name",
        "model_name",
        "num_latents",
        "activation",
        "transcode",
        "buffer",
        "width",
        "hf_hook_point_in",
        "scale",
        "x",
    ]
)
SHAPES = st.lists(st.sampled_from([0, 1, D_MODEL, D_SAE, 7]), max_size=3)
TENSORS = st.tuples(SHAPES, st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64", "bool",
    "float8_e4m3fn", "complex64"]),
                    st.sampled_from([0.0, 1.0, float("nan"), float("inf")]))  # fmt: skip
TENSOR_NAMES = st.sampled_from(["W_enc", "W_dec", "b_enc", "b_dec", "threshold", "encoder.weight",
    "encoder.bias", "decoder.weight", "bias", "w_enc",
                                "scaling_factor", "firing", "mean", "y"])  # fmt: skip
DAMAGE = st.fixed_dictionaries({
    "layout": st.sampled_from(["ours", "sparsify", "dictionary_learning", "gemma_scope"]),
    "fields": st.dictionaries(KEYS, VALUES, max_size=2),
    "inside": st.dictionaries(KEYS, VALUES, max_size=2),
    "gone": st.one_of(st.none(), KEYS, TENSOR_NAMES),
    "tensors": st.dictionaries(TENSOR_NAMES, TENSORS, max_size=2),
    "bytes": st.one_of(st.none(), st.tuples(st.booleans(), st.integers(0, 4000), st.binary(max_size=6),
        st.booleans())),
})  # fmt: skip


def written(layout: str, folder: Path) -> tuple[Path, Path]:
    """(configuration, weights) of a sound folder."""
    if layout == "sparsify":
        sparsify(folder)
        return folder / "cfg.json", folder / "sae.safetensors"
    if layout == "dictionary_learning":
        save_file(learned(folder, "BatchTopKSAE"), folder / "ae.safetensors")
        return folder / "config.json", folder / "ae.safetensors"
    if layout == "gemma_scope":
        write_gemma_scope_2(folder, 3)
        return folder / "config.json", folder / "params.safetensors"
    ones = torch.ones(D_SAE)
    meta = {"hookpoint": "blocks.3.hook_resid_post", "rows": 9}
    Dictionary(ENCODER.T, DECODER, B_ENC, B_DEC, "jumprelu", 0, ones, ones, meta, threshold=ones).save(folder)
    return folder / "cfg.json", folder / "sae_weights.safetensors"


def damaged_folders_are_read_or_refused(damage: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "layer_3"
        config, weights = written(damage["layout"], folder)
        fields = json.loads(config.read_text())
        for section in fields.values():
            if isinstance(section, dict):
                section.update(damage["inside"])
        fields |= damage["fields"]
        fields.pop(damage["gone"], None)
        config.write_text(json.dumps(fields))
        tensors = load_file(weights)
        tensors |= {
            name: torch.full(shape, value).to(getattr(torch, kind))
            for name, (shape, kind, value) in damage["tensors"].items()
        }
        tensors.pop(damage["gone"], None)
        save_file(tensors, weights)
        if damage["bytes"]:
            of_weights, at, data, cut = damage["bytes"]
            path = weights if of_weights else config
            whole = path.read_bytes()
            at %= len(whole)
            path.write_bytes(whole[:at] + data + (b"" if cut else whole[at + len(data) :]))
        before = {path: path.read_bytes() for path in folder.iterdir()}
        try:
            dictionary = load(root, d_model=24 if damage["layout"] == "gemma_scope" else D_MODEL)
        except DictionaryError as e:
            assert "layer_3" in str(e) or "SAELens" in str(e)
        else:
            assert torch.isfinite(
                dictionary.decode(dictionary.encode(torch.ones(2, dictionary.d_model)))
            ).all()
            assert dictionary.meta.get("hookpoint", "blocks.3.hook_resid_post") == "blocks.3.hook_resid_post"
        assert before == {path: path.read_bytes() for path in folder.iterdir()}


@SHORT
@given(damage=DAMAGE)
def test_any_damaged_folder_is_read_or_refused_by_name(damage: dict[str, Any]) -> None:
    damaged_folders_are_read_or_refused(damage)


@pytest.mark.prove
@LONG
@given(damage=DAMAGE)
def test_any_damaged_folder_at_length(damage: dict[str, Any]) -> None:
    damaged_folders_are_read_or_refused(damage)


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        (
            "buffer",
            {"subtract_mean": True},
            "subtract_mean=True, which is not known here and may change the activations",
        ),
        ("trainer", {"activation_scale": 2.0}, "activation_scale=2.0, which is not known here"),
        ("", {"norm_factor": 2.5}, "norm_factor=2.5, which is not known here"),
        ("buffer", {"normalize_activations": True}, "rescaled activations"),
        ("trainer", {"k": K + 1}, f"config.json says k={K + 1} and ae.safetensors holds k={K}"),
        ("trainer", {"layer": 2}, "are two layers"),
        ("trainer", {"layer": 2, "submodule_name": None}, "made for layer 2, but stands for layer 3"),
    ],
)
def test_what_dictionary_learning_says_of_its_input_is_not_dropped(
    part: str, changed: dict, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "resid_post_layer_3"
    weights = learned(folder, "AutoEncoderTopK")
    save_file(weights, folder / "ae.safetensors")
    load(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config).update(changed)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DictionaryError, match=said):
        load(tmp_path)


def test_a_dictionary_of_the_embedding_is_no_blocks(tmp_path: Path) -> None:
    sparsify(tmp_path / "3" / "embed_tokens")
    with pytest.raises(DictionaryError, match="made for embed_tokens"):
        load(f"{tmp_path}/{{layer}}/embed_tokens")
