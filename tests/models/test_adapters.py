import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltasae_ray.errors import AdapterError, ModelError
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, content_digest
from deltasae_ray.models.adapters import import_adapter
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.random_lora import haar_rotated, match_norm, scaled, singular_values
from deltasae_ray.models.source import resolve_model
from deltasae_ray.storage import Storage
from tests.tiny import save_adapter, save_model


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    return save_adapter(tmp_path / "r4", tiny_model)


def attempt(folder: Path, model: Path, tmp_path: Path) -> None:
    import_adapter(Storage(str(tmp_path / "root")), folder, "a", empty_model(model), base=str(model))


def rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def test_an_imported_adapter_is_keyed_by_content_and_not_by_path(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in (CONFIG, WEIGHTS):
        (copy / name).write_bytes((adapter / name).read_bytes())
    rewrite(copy, base_model_name_or_path="another/place")
    assert content_digest(copy) == content_digest(adapter)
    rewrite(copy, lora_alpha=64)
    assert content_digest(copy) != content_digest(adapter)
    storage = Storage(str(tmp_path / "root"))
    ref = import_adapter(storage, adapter, "r4", empty_model(tiny_model))
    assert (ref.rank, ref.alpha) == (4, 8.0)
    assert storage.exists(f"{ref.key}/{WEIGHTS}")


def test_another_base_model_only_warns(
    adapter: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(adapter, base_model_name_or_path="meta/other-model")
    with caplog.at_level(logging.WARNING):
        attempt(adapter, tiny_model, tmp_path)
    assert "other-model" in caplog.text


def test_an_adapter_that_changes_nothing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="changes nothing"):
        attempt(save_adapter(tmp_path / "zero", tiny_model, scale=0.0), tiny_model, tmp_path)


def test_modules_and_shapes_must_fit_the_model(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    save_file({k.replace("q_proj", "query"): v for k, v in weights.items()}, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match="targets no module"):
        attempt(adapter, tiny_model, tmp_path)
    save_file(
        {k: torch.cat([v, v], dim=1) if "lora_A" in k else v for k, v in weights.items()}, adapter / WEIGHTS
    )
    with pytest.raises(AdapterError, match="made for another model"):
        attempt(adapter, tiny_model, tmp_path)


def test_pickles_and_missing_files_are_never_read(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match="is a pickle, which is never read"):
        attempt(adapter, tiny_model, tmp_path)


def test_nan_in_an_adapter_is_refused(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match="NaN"):
        attempt(adapter, tiny_model, tmp_path)


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be downloaded"):
        resolve_model(ModelConfig(base="no-such/model"))
    with pytest.raises(ModelError, match="no config.json with safetensors"):
        resolve_model(ModelConfig(base=str(tmp_path)))


def test_a_model_has_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    first, second = (resolve_model(ModelConfig(base=str(save_model(tmp_path / name)))) for name in ("a", "b"))
    assert first.digest == second.digest
    assert first.digest != resolve_model(ModelConfig(base=str(save_model(tmp_path / "c", seed=1)))).digest
    assert (first.num_layers, first.d_model) == (4, 32)


def test_the_random_adapter_keeps_singular_values_and_loses_directions(adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    rotated = haar_rotated(weights, seed=0)
    assert rotated.keys() == weights.keys()
    for name in (n for n in weights if "lora_A" in n):
        partner = name.replace("lora_A", "lora_B")
        before, after = (
            singular_values(weights[name], weights[partner]),
            singular_values(rotated[name], rotated[partner]),
        )
        assert torch.allclose(before, after, rtol=1e-4)
        first, second = (w[partner] @ w[name] for w in (weights, rotated))
        assert abs(float(torch.sum(first * second) / (first.norm() * second.norm()))) < 0.35
    again = haar_rotated(weights, seed=0)
    assert all(torch.equal(rotated[n], again[n]) for n in rotated)
    assert not torch.equal(haar_rotated(weights, seed=1)[name], rotated[name])
    assert torch.allclose(scaled(rotated, 2.0)[partner], 2 * rotated[partner])


def test_match_norm_meets_its_target_on_a_bent_response() -> None:
    assert (
        abs((lambda f: 3 * f / (1 + 0.1 * f))(match_norm(lambda f: 3 * f / (1 + 0.1 * f), 5.0)) / 5.0 - 1)
        < 0.01
    )
