"""Names that users give their adapters' folders are names, and never read as part of anything else."""

import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapter_files import WEIGHTS
from deltasae_ray.models.adapters import attach, fetch, import_adapter, shown_name
from deltasae_ray.models.capture import deltas
from deltasae_ray.models.load import empty_model, load_model
from deltasae_ray.models.local import module_deltas
from deltasae_ray.models.together import deltas_together
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.inputs import _import
from tests.tiny import save_adapter, save_model

NAMES = [
    "lora_x", "lora_A", "lora_A.weight", "x.default", "default", "train", "keys", "type", "q_proj", "layers",
    "model", "weight", "a0", "a1",
    "base_model", "base_layer", "__base__", "__class__", "forward", "with space", "unié 模型",
    "modules_to_save", "lora_B.lora_A", "0", "-", "%2e",
]  # fmt: skip
H = Hookpoint(2)


def ids() -> torch.Tensor:
    return torch.randint(3, 250, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A base, an adapter that starts from random B and has a trained norm, and the deltas of plain PEFT."""
    folder = tmp_path_factory.mktemp("names")
    base = save_model(folder / "base")
    adapter = save_adapter(
        folder / "made", base, init_lora_weights=False, modules_to_save=["input_layernorm"]
    )
    tensors = load_file(adapter / WEIGHTS)
    save_file(
        {k: t * 1.3 if "layernorm" in k else t for k, t in tensors.items()},
        adapter / WEIGHTS,
        metadata={"format": "pt"},
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        untouched = model(ids(), output_hidden_states=True).hidden_states[H.hidden_states_index]
        adapted = (
            PeftModel.from_pretrained(model, adapter)
            .eval()(ids(), output_hidden_states=True)
            .hidden_states[H.hidden_states_index]
        )
    return base, adapter, adapted - untouched


def test_deltas_are_those_of_plain_peft_whatever_the_folder_is_called(
    plain: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    base, adapter, expected = plain
    storage, empty = Storage(str(tmp_path / "root")), empty_model(base)
    refs = [import_adapter(storage, adapter, name, empty) for name in NAMES]
    assert [ref.name for ref in refs] == NAMES, "the user's own names are what is shown"
    model = attach(load_model(base, deepest=2), fetch(storage, refs, tmp_path))
    for name in NAMES:
        assert torch.equal(dict(deltas(model, ids(), [H], [name]))[name][H], expected), name


def test_names_hold_in_one_pass_and_in_low_rank_coordinates(
    tiny_model: Path, tiny_adapters: tuple[Path, Path]
) -> None:
    names = ["lora_A", "train"]
    odd = attach(load_model(tiny_model, deepest=2), dict(zip(names, tiny_adapters, strict=True)))
    usual = attach(load_model(tiny_model, deepest=2), dict(zip(("x", "y"), tiny_adapters, strict=True)))
    got, expected = (
        dict(deltas_together(odd, ids(), [H], names)),
        dict(deltas_together(usual, ids(), [H], ["x", "y"])),
    )
    for name, other in zip(names, ("x", "y"), strict=True):
        assert torch.equal(got[name][H], expected[other][H]) and got[name][H].any()
        ours, theirs = module_deltas(odd, ids(), name), module_deltas(usual, ids(), other)
        assert all(torch.equal(ours[module].change, theirs[module].change) for module in theirs) and theirs


@pytest.mark.parametrize("name", ["base", "random"])
def test_a_users_own_model_may_call_its_adapter_like_our_sources(
    name: str, tiny_model: Path, tiny_adapters: tuple[Path, Path]
) -> None:
    def of(adapter: str) -> dict[str, torch.Tensor]:
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model), str(tiny_adapters[0]), adapter_name=adapter
        )
        return {module: found.change for module, found in module_deltas(model, ids(), adapter).items()}

    usual = of("mine")
    assert usual and all(torch.equal(found, usual[module]) for module, found in of(name).items())


def test_the_current_folder_and_reserved_names_are_adapters_too(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(tiny_adapters[0], tmp_path / "base")
    monkeypatch.chdir(tiny_adapters[1])
    cfg = StudyConfig(adapters=(".", f"{tmp_path}/base/"))
    refs = _import(cfg, Storage(str(tmp_path / "root")), empty_model(tiny_model))
    assert [ref.name for ref in refs] == [tiny_adapters[1].name, "base (adapter)"]


def test_what_cannot_be_written_in_a_table_is_replaced() -> None:
    assert (
        shown_name("a\nb\udcff") == "a\ufffdb?"
        and shown_name("") == "adapter"
        and shown_name("v1.5") == "v1.5"
    )
