"""What a model is called, wherever it lies."""

import json
import shutil
from pathlib import Path

import pytest

from deltasae_ray.errors import ModelError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.source import resolve_model


@pytest.mark.parametrize(
    ("folder", "saved_from", "name"),
    [
        ("models--google--gemma-2-2b/snapshots/0123", "", "google/gemma-2-2b"),
        ("mine", "google/gemma-2-2b", "google/gemma-2-2b"),
        ("mine", "/home/me/some/folder", ""),
        ("mine", "", ""),
    ],
)
def test_a_folder_tells_its_name_on_the_hub_or_none(
    tiny_model: Path, tmp_path: Path, folder: str, saved_from: str, name: str
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / folder)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": saved_from}))
    found = resolve_model(ModelConfig(base=str(copy)))
    assert (found.name, found.kind) == (name, "llama")


@pytest.mark.parametrize(
    "file",
    [
        "../elsewhere/model.safetensors",
        "/tmp/model.safetensors",
        "sub/model.safetensors",
        "pytorch_model.bin",
        5,
    ],
)
def test_an_index_that_leads_to_weights_elsewhere_is_refused_since_no_digest_would_know_them(
    tiny_model: Path, tmp_path: Path, file: object
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"model.embed_tokens.weight": file}}))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json names .*not read from elsewhere"):
        resolve_model(ModelConfig(base=str(copy)))
    for damage in (b"[]", b"{", b'{"weight_map": 1}'):
        index.write_bytes(damage)
        with pytest.raises(ModelError, match="is no index of weights"):
            resolve_model(ModelConfig(base=str(copy)))
    index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": "model.safetensors"}}))
    assert (
        resolve_model(ModelConfig(base=str(copy))).digest
        == resolve_model(ModelConfig(base=str(tiny_model))).digest
    )
