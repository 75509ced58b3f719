"""The names of the README's library, on plain arrays and without Ray."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deltasae_ray as ds
from deltasae_ray.errors import AdapterError


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """float32 [token, d_model]: two of twelve unit atoms in each, and a mean."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(12, 32))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((4000, 12)), axis=1)[:, :2]
    codes = np.zeros((4000, 12))
    np.put_along_axis(codes, chosen, rng.uniform(0.5, 1.5, chosen.shape), axis=1)
    return (codes @ atoms + 3.0).astype(np.float32)


@pytest.fixture(scope="module")
def dictionary(rows: np.ndarray) -> ds.Dictionary:
    return ds.fit_dictionary(rows, d_sae=24, k=2, architecture="topk", seed=0)


def test_a_dictionary_is_fitted_saved_and_used_in_raw_units(
    rows: np.ndarray, dictionary: ds.Dictionary, tmp_path: Path
) -> None:
    assert dictionary.W_enc.shape == (32, 24) and dictionary.W_dec.shape == (24, 32)
    codes = dictionary.encode(torch.from_numpy(rows))
    assert codes.shape == (4000, 24) and int((codes != 0).sum(dim=1).max()) <= 2
    restored = dictionary.decode(codes)
    assert torch.allclose(restored, codes @ dictionary.W_dec + dictionary.b_dec, atol=1e-4)
    assert float(((restored.numpy() - rows) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()) < 0.1
    loaded = ds.Dictionary.load(dictionary.save(tmp_path / "dictionary"))
    assert torch.equal(loaded.W_dec, dictionary.W_dec)


def test_figures_of_arrays_come_with_their_null(rows: np.ndarray, dictionary: ds.Dictionary) -> None:
    same, other = ds.max_cosine(dictionary.W_dec, dictionary.W_dec), ds.linear_cka(rows, rows)
    assert same.value == pytest.approx(1.0, abs=1e-6) and isinstance(same.null, float) and same.null < 0.7
    assert other.value == pytest.approx(1.0, abs=1e-6)
    plane = ds.principal_subspace(rows, 2)
    assert plane.shape == (32, 2) and float(ds.principal_angles(plane, plane).max()) < 1e-7
    missing = ds.missing_share(rows[3000:], dictionary.W_dec, dictionary.W_dec, k=2, training=rows[:3000])
    assert missing.value == pytest.approx(0.0, abs=1e-6)


def test_importing_the_library_and_fitting_needs_no_ray() -> None:
    code = (
        "import sys, numpy as np, deltasae_ray as ds\nx = np.random.default_rng(0).normal(size=(300,"
        " 16)).astype('float32')\nd = ds.fit_dictionary(x, d_sae=16, k=2, seed=0)\nds.max_cosine(d.W_dec,"
        " d.W_dec); ds.linear_cka(x, x); ds.principal_angles(ds.principal_subspace(x, 2),"
        " ds.principal_subspace(x, 2))\nloaded = {'ray', 'mlflow', 'transformers', 'deepspeed', 'sae_lens'} &"
        " set(sys.modules)\nassert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_change_of_every_adapted_module_comes_in_low_rank_coordinates(
    tiny_model: Path, tiny_adapters: tuple[Path, Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), str(tiny_adapters[1]), adapter_name="r4"
    ).eval()
    ids = torch.arange(3, 27).reshape(2, 12)
    found = ds.module_deltas(model, ids, "r4")
    modules = dict(model.get_base_model().named_modules())
    assert (
        set(found) == {name for name, m in modules.items() if "r4" in getattr(m, "lora_A", {})}
        and len(found) > 2
    )
    seen: dict[str, torch.Tensor] = {}

    def reader(name: str):
        return lambda layer, inputs, output: seen.update({name: output - layer.base_layer(inputs[0])})

    hooks = [modules[name].register_forward_hook(reader(name)) for name in found]
    with torch.no_grad():
        model(ids)
    [hook.remove() for hook in hooks]
    for name, local in found.items():
        assert local.coordinates.shape == (2, 12, 4)
        assert torch.allclose(local.change, seen[name], atol=1e-5) and float(seen[name].norm()) > 0
    with pytest.raises(AdapterError, match="r9.*r4"):
        ds.module_deltas(model, ids, "r9")
