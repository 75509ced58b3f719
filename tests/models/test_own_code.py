"""A model that comes with code of its own: run where the user asks for it, and otherwise refused by name."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from deltasae_ray.errors import ModelError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model, has_post_norm, load_model
from deltasae_ray.models.source import resolve_model

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny Llama under a type that transformers does not know."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own-llama", "auto_map": classes})
    )
    (folder / "modeling_own.py").write_text(CODE)
    return folder


def test_its_code_runs_only_where_it_is_asked_for(own: Path, tiny_model: Path) -> None:
    for load in (load_model, empty_model, has_post_norm):
        with pytest.raises(ModelError, match=r"code of its own.*model\.trust_remote_code=true"):
            load(own)
    model = load_model(own, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM" and not has_post_norm(own, trust_remote_code=True)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(model(ids).logits, load_model(tiny_model)(ids).logits)


def test_its_code_is_fetched_from_the_hub_only_where_it_is_asked_for(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fetched(base: str, *, allow_patterns: list[str]) -> str:  # the hub is the one thing that is not here
        assert base == "owner/name"
        asked.append(allow_patterns)
        return str(own)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    for trusted in (False, True):
        assert resolve_model(ModelConfig("owner/name", trust_remote_code=trusted)).folder == own
    assert ["*.py" in patterns for patterns in asked] == [False, True]
