"""Saved dictionaries open again, here and in SAELens, and damaged ones do not."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import ARCHITECTURES, CFG, STATISTICS, WEIGHTS, Dictionary
from deltasae_ray.sae.fitting import fit_dictionary


def made(architecture: str = "topk", d_model: int = 24, d_sae: int = 60) -> Dictionary:
    g = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g), dim=1)
    return Dictionary(
        W_enc=decoder.T + 0.1 * torch.randn(d_model, d_sae, generator=g),
        W_dec=decoder,
        b_enc=0.3 * torch.randn(d_sae, generator=g),
        b_dec=5 * torch.randn(d_model, generator=g),
        architecture=architecture,
        k=7 if architecture == "topk" else 0,
        firing=torch.rand(d_sae, generator=g) * (torch.arange(d_sae) > 9),
        energy=torch.rand(d_sae, generator=g),
        meta={"hookpoint": "blocks.3.hook_resid_post", "model": "tiny", "note": {"a": [1, 2.5]}},
        threshold=torch.rand(d_sae, generator=g) if architecture == "jumprelu" else None,
        mean=torch.randn(d_model, generator=g),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_dictionary_loads_unchanged(architecture: str, tmp_path: Path) -> None:
    before = made(architecture)
    after = Dictionary.load(before.save(tmp_path / "a"))
    for field in dataclasses.fields(Dictionary):
        a, b = getattr(before, field.name), getattr(after, field.name)
        if isinstance(a, torch.Tensor) and field.name in ("W_enc", "W_dec", "b_enc", "threshold"):
            torch.testing.assert_close(
                a, b, rtol=0, atol=1e-6
            )  # unit rows are normalised again on the way in
        else:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
    assert int(after.alive.sum()) == 50


def test_a_loaded_dictionary_can_be_saved_where_it_came_from(tmp_path: Path) -> None:
    loaded = Dictionary.load(made().save(tmp_path))
    again = Dictionary.load(loaded.save(tmp_path))
    assert torch.equal(loaded.W_enc, again.W_enc)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_opens_it_with_an_equal_forward_pass(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    dictionary = made(architecture)
    sae = SAE.load_from_disk(dictionary.save(tmp_path / "a"))
    x = 5 * torch.randn(50, 24, generator=torch.Generator().manual_seed(1))
    z = dictionary.encode(x)
    assert 0 < float((z > 0).sum(dim=1).float().mean()) <= 60
    torch.testing.assert_close(sae.encode(x).detach(), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).detach(), dictionary.decode(z), rtol=1e-5, atol=1e-5)
    assert (sae.cfg.architecture(), sae.cfg.metadata.hook_name) == (architecture, "blocks.3.hook_resid_post")


def test_a_fitted_dictionary_forwards_raw_units_in_saelens(tmp_path: Path) -> None:
    from sae_lens import SAE

    x = 300 * torch.randn(500, 16, generator=torch.Generator().manual_seed(2)) + 40
    dictionary = fit_dictionary(x, d_sae=32, k=4, steps=30, batch_tokens=100)
    sae = SAE.load_from_disk(dictionary.save(tmp_path / "a"))
    expected = dictionary.decode(dictionary.encode(x))
    assert float((sae(x).detach() - expected).norm() / expected.norm()) < 1e-5
    assert float((x - expected).square().sum() / (x - x.mean(0)).square().sum()) < 0.9


def damage(folder: Path, kind: str) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    cfg = json.loads((folder / CFG).read_text())
    if kind == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    elif kind == "truncated statistics":
        (folder / STATISTICS).write_bytes((folder / STATISTICS).read_bytes()[:-10])
    elif kind == "pickle":
        torch.save(weights, folder / WEIGHTS)
    elif kind == "missing":
        (folder / WEIGHTS).unlink()
    elif kind == "not json":
        (folder / CFG).write_text("{")
    elif kind == "json list":
        (folder / CFG).write_text("[]")
    elif kind == "nan":
        weights["W_dec"][3, 3] = float("nan")
        save_file(weights, folder / WEIGHTS)
    elif kind == "no bias":
        save_file({n: w for n, w in weights.items() if n != "b_dec"}, folder / WEIGHTS)
    elif kind == "short bias":
        save_file(weights | {"b_enc": weights["b_enc"][:-1].clone()}, folder / WEIGHTS)
    elif kind == "other width":
        (folder / CFG).write_text(json.dumps(cfg | {"d_in": 25}))
    elif kind == "k":
        (folder / CFG).write_text(json.dumps(cfg | {"k": 61}))
    elif kind == "architecture":
        (folder / CFG).write_text(json.dumps(cfg | {"architecture": "gated"}))
    elif kind == "relu":
        (folder / CFG).write_text(json.dumps(cfg | {"architecture": "standard"}))
    elif kind == "jumprelu without threshold":
        (folder / CFG).write_text(json.dumps(cfg | {"architecture": "jumprelu"}))
    elif kind == "normalised":
        (folder / CFG).write_text(json.dumps(cfg | {"normalize_activations": "layer_norm"}))


KINDS = (
    "truncated", "truncated statistics", "pickle", "missing", "not json", "json list", "nan", "no bias",
    "short bias",
    "other width", "k", "architecture", "relu", "jumprelu without threshold", "normalised",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = made().save(tmp_path / "dictionary")
    damage(folder, kind)
    with pytest.raises(DictionaryError, match="dictionary"):
        Dictionary.load(folder)


def test_impossible_dictionaries_cannot_be_made() -> None:
    good = made()
    for change in (
        {"k": 0},
        {"k": 61},
        {"architecture": "jumprelu"},
        {"b_dec": torch.zeros(3)},
        {"threshold": torch.zeros(60)},
        {"firing": torch.zeros(2)},
    ):
        with pytest.raises(DictionaryError):
            dataclasses.replace(good, **change)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(DictionaryError, match="d_model=24"):
        made().encode(torch.zeros(3, 25))


def test_statistics_can_be_measured_on_other_rows() -> None:
    dictionary = made("jumprelu")
    x = torch.randn(333, 24, generator=torch.Generator().manual_seed(3)) + dictionary.b_dec
    measured = dictionary.measured(x.numpy())
    z = dictionary.encode(x)
    torch.testing.assert_close(measured.firing, (z > 0).float().mean(0))
    torch.testing.assert_close(measured.energy, z.square().mean(0))
    assert torch.equal(measured.W_dec, dictionary.W_dec)
