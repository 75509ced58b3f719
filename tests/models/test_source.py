"""What a model is called, wherever it lies."""

import json
import shutil
from pathlib import Path

import pytest

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
def test_a_folder_tells_its_name_on_the_hub_or_none(tiny_model: Path, tmp_path: Path, folder: str, saved_from: str, name: str) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / folder)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": saved_from}))
    found = resolve_model(ModelConfig(base=str(copy)))
    assert (found.name, found.kind) == (name, "llama")
