"""What each adapted module changes, s·B·A·u, as a harvest stores it; workers run in this process, without
Ray."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deltasae_ray.errors import HookpointError, ShardError
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import unit_ids, unit_mask
from deltasae_ray.models.load import load_model
from deltasae_ray.models.local import module_deltas
from deltasae_ray.shards import ShardSet, open_shards
from deltasae_ray.shards.records import writers_file
from deltasae_ray.storage import Storage
from tests.harvest.study import corpus, hashes, replace_run_units, run, run_units_here
from tests.tiny import save_adapter, save_model

SITES = ("resid_post", "lora")
Adapters = tuple[Path, Path]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_run_units(monkeypatch, run_units_here)


@pytest.mark.parametrize(
    ("architecture", "precision"), [("llama", "fp32"), ("gemma3", "mixed"), ("gpt2", "fp32")]
)
def test_every_adapted_module_at_the_layers_studied_is_stored_with_what_it_writes(
    architecture: str, precision: str, tmp_path: Path
) -> None:
    """Held against plain PEFT, one adapter at a time; ranks differ between the modules of one adapter, and
    one adapter is rsLoRA."""
    model = save_model(tmp_path / "model", architecture)
    folders = {
        "pattern": save_adapter(
            tmp_path / "pattern", model, architecture, rank=4, rank_pattern={"0|2|c_proj|o_proj": 3}, seed=1
        ),
        "rs": save_adapter(
            tmp_path / "rs", model, architecture, rank=2, use_rslora=True, layers_to_transform=[0, 2], seed=2
        ),
    }
    done = run(tmp_path / "root", model, list(folders.values()), sites=SITES, precision=precision)
    shards = open_shards(tmp_path / "root")
    for name, folder in folders.items():
        peft = attach(load_model(model), {name: folder})
        units = sorted(corpus(model).units, key=lambda u: u.name)
        plain = [(module_deltas(peft, unit_ids(u), name), unit_mask(u)) for u in units]
        there = shards.lora_hookpoints(name)
        assert {h.split(".")[1] for h in there} == ({"1", "2"} if name == "pattern" else {"2"}), (
            "of the layers studied, those it adapts"
        )
        for hook in there:
            path = hook.removeprefix("blocks").removesuffix(".hook_lora")
            (key,) = [k for k in plain[0][0] if k.endswith(path)]
            expected = torch.cat([found[key].change[mask] for found, mask in plain]).numpy()
            change = shards.read(hook, name) @ shards.writer(hook, name).T
            tolerance = 1e-3 if precision == "fp32" else 0.05
            assert np.linalg.norm(change - expected) <= tolerance * np.linalg.norm(expected), hook
    ranks = {shards.writer(h, "pattern").shape[1] for h in shards.lora_hookpoints("pattern")}
    assert ranks == {3, 4}, "each module has its own rank"
    assert shards.lora_hookpoints("random") and not shards.lora_hookpoints("base")
    assert set(shards.hookpoints) == {str(h) for h in done.hookpoints}, (
        "the residual stream's columns are what they were"
    )


def test_the_site_is_added_to_a_finished_harvest_and_then_found_there(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    first = run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False)
    before = hashes(tmp_path, first.key)
    run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False, sites=SITES)
    both = hashes(tmp_path, first.key)
    added = both.keys() - before.keys()
    assert before.items() < both.items()
    assert all(
        source != "base" and all(h.endswith(".hook_lora") for h in hooks) for _, source, hooks in added
    )
    written = {
        p: p.stat().st_mtime_ns
        for p in tmp_path.rglob("*")
        if p.is_file() and "harvest" in p.parts and p.name != "units.json"
    }
    run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False, sites=SITES)
    assert {p: p.stat().st_mtime_ns for p in written} == written and hashes(tmp_path, first.key) == both
    together = run(tmp_path / "together", tiny_model, list(tiny_adapters), random_lora=False, sites=SITES)
    one, other = open_shards(tmp_path), open_shards(tmp_path / "together")
    assert together.key == first.key
    for hook in one.lora_hookpoints("r4"):
        assert np.array_equal(one.read(hook, "r4", verify=True), other.read(hook, "r4", verify=True))
    assert np.array_equal(one.read(2, "r4"), other.read(2, "r4"))
    run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False, layers=(0, 1, 2))
    again = open_shards(tmp_path)
    assert again.lora_hookpoints("r4") == one.lora_hookpoints("r4"), (
        "a later harvest without the site, of another layer, takes nothing away"
    )
    for hook in again.lora_hookpoints("r4"):
        assert np.array_equal(again.read(hook, "r4"), one.read(hook, "r4")) and again.writer(hook, "r4").any()


def test_what_has_no_low_rank_coordinates_has_no_such_site_and_is_told(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dora = save_adapter(tmp_path / "dora", tiny_model, use_dora=True)
    plain = save_adapter(tmp_path / "plain", tiny_model)
    run(tmp_path / "root", tiny_model, [dora, plain], random_lora=False, sites=SITES)
    shards = open_shards(tmp_path / "root")
    assert "adapter dora adapts no linear module" in caplog.text and "adapter plain" not in caplog.text
    assert not shards.lora_hookpoints("dora") and shards.lora_hookpoints("plain")
    with pytest.raises(HookpointError, match=r"of 'dora' was not harvested"):
        shards.read(shards.lora_hookpoints("plain")[0], "dora")


@pytest.fixture(scope="module")
def harvested(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        replace_run_units(patch, run_units_here)
        return root, run(root, tiny_model, [tiny_adapters[1]], random_lora=False, sites=SITES).key


def damaged(shards: ShardSet) -> Path:
    return shards.storage.local(writers_file(shards.key, shards.source("r4").digest))


def test_an_altered_or_lost_writer_is_named_and_written_again(
    harvested: tuple[Path, str], tiny_model: Path, tiny_adapters: Adapters
) -> None:
    root, key = harvested
    shards = open_shards(root)
    (hook, *_), file = shards.lora_hookpoints("r4"), damaged(shards)
    sound, shard_hashes = file.read_bytes(), hashes(root, key)
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(
        ShardError, match=r"writers\.safetensors was altered: delete it and run the harvest again"
    ):
        shards.writer(hook, "r4")
    file.unlink()
    with pytest.raises(ShardError, match=r"writers\.safetensors.*Run the harvest again"):
        shards.writer(hook, "r4")
    assert shards.read(hook, "r4").shape[1] == 4, "coordinates stay readable"
    run(root, tiny_model, [tiny_adapters[1]], random_lora=False, sites=SITES)
    assert file.read_bytes() == sound and hashes(root, key) == shard_hashes


def test_a_hookpoint_that_was_not_harvested_names_those_that_were(harvested: tuple[Path, str]) -> None:
    shards = open_shards(harvested[0])
    for hook in ("blocks.0.self_attn.q_proj.hook_lora", "blocks.2.self_attn.k_proj.hook_lora"):
        with pytest.raises(
            HookpointError, match=r"was not harvested, but \['blocks\.1\..*harvest\.sites=\[resid_post,lora\]"
        ):
            shards.read(hook, "r4")
        with pytest.raises(HookpointError, match="was not harvested"):
            shards.writer(hook, "r4")
    assert Storage(str(harvested[0])).exists(writers_file(harvested[1], shards.source("r4").digest))
