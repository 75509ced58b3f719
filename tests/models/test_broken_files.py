"""Files of adapters and base models that are broken, or of something else: told at the plan, by the user's
file, with cause and remedy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deltasae_ray.errors import AdapterError, DeltaSaeError, ModelError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, read_config
from deltasae_ray.models.adapters import AdapterRef, attach, import_adapter
from deltasae_ray.models.base_files import check_base
from deltasae_ray.models.capture import deltas
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.expected import peft_config
from deltasae_ray.models.load import empty_model, load_model, load_tokenizer
from deltasae_ray.models.source import resolve_model
from deltasae_ray.storage import Storage
from tests.tiny import save_adapter, save_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4983508568\n"
H = Hookpoint(2)
PREFIX = "base_model.model."


@pytest.fixture
def adapter(tiny_adapters: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_adapters[1], tmp_path / "mine"))


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def attempt(folder: Path, model: Path) -> AdapterRef:
    return import_adapter(Storage(str(folder.parent / "root")), folder, folder.name, empty_model(model))


def rewrite(file: Path, **changes: Any) -> None:
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


BROKEN = {
    "pointer": (POINTER, "Git LFS pointer.*git lfs pull"),
    "empty": (b"", "is empty"),
    "cut": (None, "no whole safetensors file.*cut off"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_weights_that_are_not_there_whole_are_told_at_the_plan(how: str, adapter: Path, base: Path) -> None:
    data, told = BROKEN[how]
    for file in (adapter / WEIGHTS, base / "model.safetensors"):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(AdapterError, match=f"mine/{WEIGHTS}.*{told}"):
        attempt(adapter, base)
    for weights in (True, False):  # a dry run asks for none, and looks at those that are there
        with pytest.raises(ModelError, match=f"base/model.safetensors.*{told}"):
            resolve_model(ModelConfig(base=str(base)), weights=weights)


def test_every_shard_of_a_base_is_looked_at(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and resolve_model(ModelConfig(base=str(folder))).num_layers == 4
    kept = shards[1].read_bytes()
    shards[1].write_bytes(POINTER)
    with pytest.raises(ModelError, match=f"{shards[1].name} is a Git LFS pointer"):
        resolve_model(ModelConfig(base=str(folder)), weights=False)
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"{shards[1].name} cannot be read: No such file"):
        resolve_model(ModelConfig(base=str(folder)), weights=False)
    shards[1].write_bytes(kept)
    index = folder / "model.safetensors.index.json"
    for bad in ("[]", "{", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../../etc/passwd"}}'):
        index.write_text(bad)
        with pytest.raises(DeltaSaeError, match="index of weights|not read from elsewhere"):
            resolve_model(ModelConfig(base=str(folder)))


@pytest.mark.parametrize(
    "bad", [POINTER, b"", b"\xef\xbb\xbf{}", b'{"a": ', b"[1]", b"\xff\xfe", b"[" * 100_000]
)
def test_a_config_that_is_no_object_is_told_by_file(bad: bytes, adapter: Path, base: Path) -> None:
    for file in (adapter / CONFIG, base / "config.json"):
        file.write_bytes(bad)
    with pytest.raises(AdapterError, match=f"mine/{CONFIG}"):
        import_adapter(Storage(str(adapter.parent / "root")), adapter, "mine", torch.nn.Module())
    with pytest.raises(ModelError, match="base/config.json"):
        resolve_model(ModelConfig(base=str(base)), weights=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", ...), ("lora_alpha", ...), ("r", "16"), ("r", 0), ("r", True), ("r", 2.5), ("r", None),
        ("lora_alpha", "16"), ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400), ("target_modules", "(q_proj"), ("target_modules", [3]),
            ("target_modules", "no_such"), ("target_modules", []),
        ("rank_pattern", {"(": 4}), ("rank_pattern", [1]), ("alpha_pattern", {"q_proj": "8"}),
            ("layers_to_transform", "1"), ("bias", "some"),
        ("layers_pattern", ["("]), ("modules_to_save", "embed_tokens"), ("use_dora", "yes"),
            ("init_lora_weights", "magic"), ("lora_dropout", 2),
        ("init_lora_weights", 3), ("peft_type", ...), ("peft_type", ["LORA"]), ("exclude_modules", "["),
            ("base_model_name_or_path", 7),
        ("use_something_new", True), ("layer_replication", [[0, 2]]),
    ],
)  # fmt: skip
def test_a_field_of_the_config_that_says_what_it_may_not_is_named(
    field: str, value: Any, adapter: Path, tiny_model: Path
) -> None:
    rewrite(adapter / CONFIG, **{field: value})
    with pytest.raises(AdapterError, match=f"mine.*{field}"):
        attempt(adapter, tiny_model)


def test_a_rank_of_another_adapter_and_surplus_tensors_are_refused(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter / CONFIG, r=8)
    with pytest.raises(AdapterError, match=r"asks for \(8, \d+\): r or rank_pattern"):
        attempt(adapter, tiny_model)
    rewrite(adapter / CONFIG, r=4, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=f"{CONFIG} does not ask for"):
        attempt(adapter, tiny_model)
    rewrite(adapter / CONFIG, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"])
    with pytest.raises(AdapterError, match="no tensor for .*k_proj.lora_A.*saved whole"):
        attempt(adapter, tiny_model)


def test_keys_are_read_as_peft_reads_them_or_refused_at_the_plan(adapter: Path, tiny_model: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    plain = attempt(adapter, tiny_model)
    save_file({k.replace(".weight", ".default.weight"): t for k, t in tensors.items()}, adapter / WEIGHTS)
    assert of_plain_peft(adapter, tiny_model).any(), "PEFT reads its default name in keys"
    assert attempt(adapter, tiny_model).digest == plain.digest
    assert torch.equal(ours(adapter, tiny_model), of_plain_peft(adapter, tiny_model))
    for wrong in (
        lambda k: k.removeprefix(PREFIX),
        lambda k: k.replace(PREFIX, "base_model."),
        lambda k: k.replace(".weight", ".mine.weight"),
    ):
        save_file({wrong(k): t for k, t in tensors.items()}, adapter / WEIGHTS)
        assert not of_plain_peft(adapter, tiny_model).any(), "PEFT leaves these out"
        with pytest.raises(AdapterError, match=f"mine/{WEIGHTS}.*save_pretrained|mine: .*targets no module"):
            attempt(adapter, tiny_model)


def ids() -> torch.Tensor:
    return torch.randint(3, 250, (2, 10), generator=torch.Generator().manual_seed(0))


def of_plain_peft(folder: Path, base: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        untouched = model(ids(), output_hidden_states=True).hidden_states[3]
        return (
            PeftModel.from_pretrained(model, folder).eval()(ids(), output_hidden_states=True).hidden_states[3]
            - untouched
        )


def ours(folder: Path, base: Path) -> torch.Tensor:
    storage = Storage(str(folder.parent / "root"))
    model = attach(load_model(base), {"mine": storage.local(attempt(folder, base).key)})
    return dict(deltas(model, ids(), [H], ["mine"]))["mine"][H]


@pytest.mark.parametrize("start", ["orthogonal", "gaussian", "eva", "mica", True, False])
def test_what_a_and_b_begin_with_does_not_matter(start: str | bool, adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter / CONFIG, init_lora_weights=start, lora_alpha=3)
    assert torch.equal(ours(adapter, tiny_model), of_plain_peft(adapter, tiny_model))


@pytest.mark.parametrize(
    ("start", "cause"),
    [
        ("pissa", "took a part out of the base"),
        ("olora", "took a part"),
        ("corda", "took a part"),
        ("lora_ga", "took a part"),
        ("loftq", "quantised the base"),
    ],
)
def test_a_start_that_altered_the_base_is_refused_with_its_cause(
    start: str, cause: str, adapter: Path, tiny_model: Path
) -> None:
    rewrite(adapter / CONFIG, init_lora_weights=start)
    with pytest.raises(
        AdapterError, match=f"init_lora_weights='{start}'.*{cause}.*(path_initial_model|model.unload)"
    ):
        attempt(adapter, tiny_model)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_unchanged_copies_of_embeddings_are_no_change(architecture: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", architecture)
    folder = save_adapter(tmp_path / "mine", base, architecture)
    plain = attempt(folder, base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    model.save_pretrained(folder, save_embedding_layers=True)
    copied = [k for k in load_file(folder / WEIGHTS) if "lora_" not in k]
    assert copied and attempt(folder, base).digest == plain.digest, "it is the adapter without its copies"
    tensors = load_file(folder / WEIGHTS)
    tensors[next(k for k in copied if "lm_head" not in k)][5] += 1.0
    save_file(tensors, folder / WEIGHTS)
    assert attempt(folder, base).digest != plain.digest
    (copied_head,) = [k for k in copied if "lm_head" in k] or [f"{PREFIX}lm_head.weight"]
    save_file(tensors | {copied_head: tensors[copied[0]] * 2}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="changes the language-model head"):
        attempt(folder, base)


def test_a_resized_vocabulary_is_told_as_what_it_is(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    made = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    made.save_pretrained(tmp_path / "mine")
    with pytest.raises(
        AdapterError,
        match=r"has 322 rows, the model's vocabulary 320.*resize_token_embeddings\(322\).*model\.base",
    ):
        attempt(tmp_path / "mine", tiny_model)


@pytest.mark.parametrize(
    "told",
    [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}, {"fp8": 1}],
)
def test_a_quantised_base_is_refused_at_the_plan(told: dict[str, Any], base: Path) -> None:
    rewrite(base / "config.json", quantization_config=told)
    for weights in (True, False):
        with pytest.raises(
            ModelError, match=r"base/config\.json has quantization_config .*dequantise this one"
        ):
            resolve_model(ModelConfig(base=str(base)), weights=weights)


def test_an_adapters_folder_is_no_base(base: Path, adapter: Path) -> None:
    shutil.copy(adapter / CONFIG, base)
    with pytest.raises(ModelError, match="holds an adapter_config.json"):
        resolve_model(ModelConfig(base=str(base)))


def test_what_is_left_of_a_download_is_no_fault_of_a_hub_model_at_the_plan(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="60KB")
    next(folder.glob("model-00002-*.safetensors")).unlink()
    assert check_base(folder, weights=False, given=False)["model_type"] == "llama"
    with pytest.raises(ModelError, match="model-00002-.* cannot be read"):
        check_base(folder, weights=True, given=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_a_pointer_is_told_by_file(name: str, base: Path) -> None:
    (base / name).write_bytes(POINTER)
    with pytest.raises(ModelError, match=f"{name} is a Git LFS pointer"):
        load_tokenizer(base)


def test_a_folder_without_an_adapter_is_told_by_what_it_holds(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_adapters[0], tmp_path / "runs/checkpoint-5")
    with pytest.raises(
        AdapterError,
        match=f"adapters lie below it, give one of them, such as {tmp_path / 'runs/checkpoint-5'}",
    ):
        read_config(tmp_path / "runs")
    with pytest.raises(AdapterError, match="looks like a whole model"):
        read_config(tiny_model)
    pickle = Path(shutil.copytree(tiny_adapters[0], tmp_path / "pickle"))
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    with pytest.raises(
        AdapterError, match="adapter_model.bin is a pickle, which is never read.*save_pretrained"
    ):
        read_config(pickle)


@pytest.mark.parametrize("value", [2.0, "vera"])
def test_a_setting_of_a_newer_peft_that_may_matter_is_told(
    value: object, tiny_adapters: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_adapters[0], tmp_path / "r"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_novelty": value}))
    peft_config(folder)
    assert "lora_novelty" in caplog.text and "the deltas are wrong" in caplog.text
