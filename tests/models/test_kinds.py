"""Every kind of adapter that PEFT writes: the deltas of plain transformers and PEFT, and a base that stays
the base bit by bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deltasae_ray.errors import AdapterError
from deltasae_ray.harvest.prepare import write_rotated
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS
from deltasae_ray.models.adapters import attach, import_adapter
from deltasae_ray.models.capture import deltas, residuals
from deltasae_ray.models.load import empty_model, load_model
from deltasae_ray.storage import Storage
from tests.tiny import save_adapter, save_model

HOOKPOINTS = [Hookpoint(0), Hookpoint(2)]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama", {"use_rslora": True, "lora_alpha": 3}),
    "patterns": ("llama", {"rank_pattern": {"o_proj": 7}, "alpha_pattern": {"q_proj": 1}}),
    "mlp": ("gemma3", {"targets": ["gate_proj", "up_proj", "down_proj"]}),
    "one-layer": ("gemma3", {"layers_to_transform": 1}),
    "all-linear": (
        "llama",
        {"targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    ),
    "dora": ("llama", {"use_dora": True}),
    "dora-gemma": ("gemma3", {"use_dora": True, "use_rslora": True}),
    "lora-bias": ("llama", {"lora_bias": True}),
    "trained-biases": ("gpt2", {"bias": "lora_only"}),
    "all-biases": ("gpt2", {"bias": "all"}),
    "trained-norms": ("llama", {"modules_to_save": ["input_layernorm"]}),
    "trained-embedding": ("gemma3", {"modules_to_save": ["embed_tokens"]}),
    "embedding": ("llama", {"targets": ["embed_tokens", "o_proj"]}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_model(folder / kind, kind) for kind in ("llama", "gemma3", "gpt2")}


def ids() -> torch.Tensor:
    return torch.randint(3, 250, (2, 16), generator=torch.Generator().manual_seed(0))


def train_a_little(folder: Path, keys: str) -> None:
    """Moves what PEFT saved at its start: magnitudes, biases, whole modules."""
    generator = torch.Generator().manual_seed(7)
    moved = {
        name: (
            t * (1 + 0.2 * torch.randn(t.shape, generator=generator)) + (0.05 if "bias" in name else 0.0)
            if keys in name
            else t
        )
        for name, t in load_file(folder / WEIGHTS).items()
    }
    save_file(moved, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_deltas_are_those_of_plain_peft_beside_an_untouched_base(
    kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    architecture, settings = KINDS[kind]
    base, folder = (
        models[architecture],
        save_adapter(tmp_path / kind, models[architecture], architecture, **settings),
    )
    for moved in ("magnitude", "bias", "norm", "embed_tokens.weight"):
        train_a_little(folder, moved)
    storage = Storage(str(tmp_path / "root"))
    ref = import_adapter(storage, folder, kind, empty_model(base))
    other = save_adapter(tmp_path / "other", base, architecture)
    model = attach(load_model(base, deepest=2), {"other": other, kind: storage.local(ref.key)})
    taken = dict(deltas(model, ids(), HOOKPOINTS, [kind, "other"]))
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
    ).eval()
    with torch.no_grad():
        adapted = plain(ids(), output_hidden_states=True).hidden_states
    untouched = residuals(load_model(base, deepest=2), ids(), HOOKPOINTS)
    for h in HOOKPOINTS:
        assert torch.equal(taken["base"][h], untouched[h]), "the base of the pass is the base"
        expected = adapted[h.hidden_states_index] - untouched[h]
        assert (taken[kind][h] - expected).norm() <= 1e-5 * untouched[h].norm() + 1e-5 * expected.norm()
        if kind != "one-layer":
            assert expected.norm() > 1e-2 * untouched[h].norm()
    assert taken[kind][Hookpoint(2)].any()
    again = dict(deltas(attach(load_model(base, deepest=2), {"other": other}), ids(), HOOKPOINTS, ["other"]))
    assert all(torch.equal(taken["other"][h], again["other"][h]) for h in HOOKPOINTS), (
        "one adapter's values never reach another"
    )


@pytest.mark.parametrize("kind", ["dora", "all-biases", "embedding"])
def test_the_random_control_of_any_kind_is_plain_lora_that_moves_the_model(
    kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    architecture, settings = KINDS[kind]
    folder = save_adapter(tmp_path / kind, models[architecture], architecture, **settings)
    storage = Storage(str(tmp_path / "root"))
    ref = import_adapter(storage, folder, kind, empty_model(models[architecture]))
    control = write_rotated(storage, ref, "adapters/random", seed=0)
    model = attach(load_model(models[architecture], deepest=2), {"random": storage.local(control.key)})
    assert dict(deltas(model, ids(), HOOKPOINTS, ["random"]))["random"][Hookpoint(2)].any()
    config = json.loads((storage.local(control.key) / CONFIG).read_text())
    assert (config["use_dora"], config["bias"], config["modules_to_save"] or None) == (False, "none", None)


def rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def test_adapters_without_an_exact_path_are_refused_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    folder, empty, storage = (
        save_adapter(tmp_path / "a", models["llama"]),
        empty_model(models["llama"]),
        Storage(str(tmp_path / "root")),
    )
    original = (folder / CONFIG).read_text()
    for change in (
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["experts.down"]},
        {"layer_replication": [[0, 2]]},
    ):
        rewrite(folder, **change)
        with pytest.raises(AdapterError, match=next(iter(change)).replace("peft_type", "IA3")):
            import_adapter(storage, folder, "a", empty)
        (folder / CONFIG).write_text(original)
    assert import_adapter(storage, folder, "a", empty).rank == 4


def test_an_adapter_of_the_language_model_head_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    for name, settings in {
        "lora": {"targets": ["lm_head", "q_proj"]},
        "saved": {"modules_to_save": ["lm_head"]},
    }.items():
        folder = save_adapter(tmp_path / name, models["llama"], **settings)
        with pytest.raises(AdapterError, match="language-model head .lm_head"):
            import_adapter(Storage(str(tmp_path / "root")), folder, name, empty_model(models["llama"]))


def test_an_adapter_that_lacks_a_tensor_is_refused_and_not_left_to_chance(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "a", models["llama"])
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(name for name in tensors if "layers.1.self_attn.q_proj.lora_A" in name))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="no tensor for .*layers.1.self_attn.q_proj.lora_A"):
        attach(load_model(models["llama"], deepest=2), {"a": folder})
