"""What a harvest finds missing, measures, writes and refuses; workers run in this process, without Ray."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from deltasae_ray.errors import (
    AdapterError,
    ConfigError,
    ModelError,
    PrecisionError,
    ShardError,
    StorageError,
)
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.harvest.key import NUMERICS
from deltasae_ray.harvest.prepare import PrepareFactory
from deltasae_ray.harvest.random_draws import random_draws, random_names, random_ranks
from deltasae_ray.harvest.sources import _judge
from deltasae_ray.harvest.worker import HarvestFactory
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapter_files import WEIGHTS
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.units import Work, WorkerFactory
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.manifest import Manifest, commit_unit, is_committed
from deltasae_ray.shards.records import ShardRow, read_sources, shard_file
from deltasae_ray.storage import Storage
from tests.harvest.study import hashes, replace_run_units, run, run_units_here
from tests.tiny import save_adapter, save_model

Adapters = tuple[Path, Path]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_run_units(monkeypatch, run_units_here)


def test_a_finished_harvest_writes_nothing_and_a_new_adapter_or_layer_only_itself(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    first = run(tmp_path, tiny_model, [tiny_adapters[0]])
    before = hashes(tmp_path, first.key)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("sources/*/*.parquet")}
    run(tmp_path, tiny_model, list(tiny_adapters))
    run(tmp_path, tiny_model, list(tiny_adapters), layers=(0, 1, 2))
    after = hashes(tmp_path, first.key)
    assert {k: v for k, v in after.items() if k in before} == before
    assert {p: p.stat().st_mtime_ns for p in written} == written, "what was there is not written again"
    added = {identity[1:] for identity in after.keys() - before.keys()}
    sources = {s for s, _ in added}
    assert len(sources) == 5, "base, a random adapter of each rank, the old and the new adapter"
    zero = ("blocks.0.hook_resid_post",)
    assert all(hooks == zero for source, hooks in added if source == "base")


@pytest.mark.parametrize("stage_number", [1, 2])
def test_a_node_that_has_another_model_under_the_same_name_refuses(
    stage_number: int,
    tiny_model: Path,
    tiny_adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Preparation and harvest load the model by its name; what lies there is changed before the one or the
    other does."""
    here = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    other, started = save_model(tmp_path / "other", seed=1), []

    def on_another_node(work: Work, factory: WorkerFactory, cfg: GangConfig) -> Iterator[tuple[str, Any]]:
        started.append(factory)
        if len(started) == stage_number:
            shutil.copytree(other, here, dirs_exist_ok=True)
        return run_units_here(work, factory, cfg)

    replace_run_units(monkeypatch, on_another_node)
    with pytest.raises(ModelError, match="other weights on this node"):
        run(tmp_path / "root", here, [tiny_adapters[0]])
    assert len(started) == stage_number and not list((tmp_path / "root").rglob("*.parquet"))


def test_units_that_gangs_tell_of_but_nobody_finds_are_an_error_and_no_finished_harvest(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node writes to a disk of its own."""

    def elsewhere(work: Work, factory: WorkerFactory, cfg: GangConfig) -> Iterator[tuple[str, Any]]:
        if isinstance(factory, HarvestFactory):
            mine = replace(factory.plan, storage=Storage(str(tmp_path / "another-disk")))
            shutil.copytree(tmp_path / "root", tmp_path / "another-disk")
            factory = HarvestFactory(mine)
        return run_units_here(work, factory, cfg)

    replace_run_units(monkeypatch, elsewhere)
    with pytest.raises(StorageError, match=r"lacks \d+ of its units.*can all nodes write"):
        run(tmp_path / "root", tiny_model, [tiny_adapters[0]], random_lora=False)


def test_sites_that_are_not_what_a_block_adds_are_refused_before_the_first_shard(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "granite")
    adapter = save_adapter(tmp_path / "r2", model, "granite", rank=2)
    with pytest.raises(ModelError, match="does more than add attention and MLP outputs.*use resid_post"):
        run(tmp_path / "root", model, [adapter], sites=("resid_post", "attn_out"))
    assert not list((tmp_path / "root").rglob("*.parquet"))


def test_a_unit_is_done_once_exactly_its_work_is_committed(tmp_path: Path) -> None:
    storage, key, work = (
        Storage(str(tmp_path)),
        "harvest/a",
        {"base": ["blocks.1.hook_resid_post"], "d": ["blocks.1.hook_resid_post"]},
    )
    rows = [
        ShardRow(
            "u",
            source,
            "fit",
            "domain",
            tuple(hooks),
            shard_file("u", source, tuple(hooks)),
            "0" * 64,
            1,
            1,
            4,
        )
        for source, hooks in work.items()
    ]
    assert not is_committed(storage, key, "u", work)
    name = commit_unit(storage, key, rows)
    assert is_committed(storage, key, "u", work)
    assert not is_committed(storage, key, "u", {"base": work["base"]}) and not is_committed(
        storage, key, "v", work
    )
    storage.write_json(name, [rows[0].to_json()])  # as a repair leaves it that has dropped a row
    assert not is_committed(storage, key, "u", work)


def test_the_random_adapter_is_another_for_another_model(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    """Its strength is matched on the model: one root may hold harvests of two models with the same adapter
    and text."""
    first = run(tmp_path, tiny_model, [tiny_adapters[0]])
    second = run(tmp_path, save_model(tmp_path / "other", seed=1), [tiny_adapters[0]])
    ours, theirs = (next(a for a in done.adapters if a.name == "random") for done in (first, second))
    assert (
        ours.kind == theirs.kind == "random"
        and ours.key != theirs.key
        and ours.facts["factor"] != theirs.facts["factor"]
    )


def test_every_rank_has_a_random_adapter_and_one_rank_has_two() -> None:
    assert random_ranks([16, 4, 4]) == [4, 16] and random_ranks([8, 8]) == [8, 8] and random_ranks([]) == []
    assert random_names([16, 4]) == ["random", "random-r16"]
    assert random_names([8]) == ["random", "random-r8-2"]


def test_random_adapters_do_not_depend_on_the_order_of_adapters_or_on_a_larger_rank() -> None:
    small, large = (
        AdapterRef(name, f"adapters/{name}", name, rank, 16.0) for name, rank in (("a", 2), ("b", 8))
    )
    twin = replace(small, name="c", digest="0")
    both = random_draws([large, small])
    assert both == random_draws([small, large]) and [d.like for d in both] == [small, large]
    assert both[0] == random_draws([small])[0] and [d.seed for d in random_draws([small])] == [0, 1]
    assert random_draws([small, twin, large])[0].like == random_draws([twin, small])[0].like == twin, "ties"


def test_one_gang_makes_the_random_adapter_and_measures_noise_at_the_strength_that_is_stored(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def counted(work: Work, factory: WorkerFactory, cfg: GangConfig) -> Iterator[tuple[str, Any]]:
        started.append(factory)
        return run_units_here(work, factory, cfg)

    replace_run_units(monkeypatch, counted)

    def signals() -> dict[str, float]:
        sources = read_sources(Storage(str(tmp_path)), done.key)
        return {
            s.name: s.facts["noise"]["blocks.2.hook_resid_post"]["signal"]
            for s in sources
            if s.name != "base"
        }

    done = run(tmp_path, tiny_model, [tiny_adapters[0]])
    assert len(started) == 2, "preparation and harvest"
    first = signals()
    run(
        tmp_path, tiny_model, [tiny_adapters[0]], layers=(0, 1, 2)
    )  # a new layer: measured anew, from the adapter as it was stored
    assert signals() == pytest.approx(first, rel=1e-4) and 0.2 < first["random"] / first["r2"] < 5


def test_noise_is_measured_anew_on_other_contexts_and_no_shard_is(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[type] = []

    def counted(work: Work, factory: WorkerFactory, cfg: GangConfig) -> Iterator[tuple[str, Any]]:
        started.append(type(factory))
        return run_units_here(work, factory, cfg)

    def noise(contexts: int) -> dict:
        done = run(tmp_path, tiny_model, [tiny_adapters[0]], random_lora=False, noise_contexts=contexts)
        return open_shards(f"{tmp_path}/{done.key}").source("r2").facts["noise"]

    replace_run_units(monkeypatch, counted)
    first = noise(1)
    started.clear()
    assert noise(1) == first and not started
    assert noise(2) != first and started == [PrepareFactory]


def test_an_adapter_that_is_silent_at_every_layer_fails_and_says_where_it_acts(
    tiny_model: Path, tmp_path: Path
) -> None:
    late = save_adapter(tmp_path / "late", tiny_model, layers_to_transform=[3])
    with pytest.raises(AdapterError, match="changes nothing at layers.*deeper"):
        run(tmp_path / "root", tiny_model, [late], random_lora=False)


def test_an_adapter_without_any_effect_is_refused_before_a_random_one_is_matched_to_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    idle = save_adapter(tmp_path / "idle", tiny_model)
    weights = load_file(idle / WEIGHTS)
    save_file({name: t * ("lora_A" not in name) for name, t in weights.items()}, idle / WEIGHTS)  # B·0
    with pytest.raises(AdapterError, match="changes nothing"):
        run(tmp_path / "root", tiny_model, [idle])


def test_deltas_near_their_noise_are_refused() -> None:
    ref = AdapterRef("a", "k", "d", 4, 8.0)
    noise = {Hookpoint(1): {"signal": 1.0, "snr": 5.0}}
    with pytest.raises(PrecisionError, match="below harvest.min_snr=10"):
        _judge(ref, noise, 10.0)
    _judge(ref, noise, 1.0)


def test_deltas_whose_noise_is_let_through_but_not_small_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ref = AdapterRef("a", "k", "d", 4, 8.0)
    _judge(
        ref, {Hookpoint(1): {"signal": 1.0, "snr": 99.0}, Hookpoint(2): {"signal": 1.0, "snr": 100.0}}, 10.0
    )
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert (
        said.getMessage()
        == "adapter a, blocks.1.hook_resid_post: signal-to-noise is only 99 (a sound harvest has over 100)"
    )


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_a_harvest_measures_that_a_tiny_delta_is_rounding_and_warns_or_refuses(
    precision: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Measured here: an SNR of 10 to 17 at 3e-6 of the adapter's strength, below 4 at 1e-6."""

    def weak(strength: float, name: str) -> Path:
        folder = save_adapter(tmp_path / name, tiny_model, rank=2, seed=1)
        tensors = load_file(folder / WEIGHTS)
        save_file(
            {n: t * (strength if "lora_B" in n else 1) for n, t in tensors.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        return folder

    done = run(tmp_path / "root", tiny_model, [weak(5e-6, "weak")], random_lora=False, precision=precision)
    assert all(
        10 < n["snr"] < 100
        for n in open_shards(f"{tmp_path}/root/{done.key}").source("weak").facts["noise"].values()
    )
    assert [
        r.getMessage().split(":")[0]
        for r in caplog.records
        if r.levelname == "WARNING" and "signal-to-noise" in r.getMessage()
    ] == [f"adapter weak, blocks.{layer}.hook_resid_post" for layer in (1, 2)]
    before = set((tmp_path / "root").rglob("*.parquet"))
    with pytest.raises(
        PrecisionError,
        match=r"adapter weaker, blocks.1.hook_resid_post: signal-to-noise .* is below harvest.min_snr=10",
    ):
        run(tmp_path / "root", tiny_model, [weak(1e-6, "weaker")], random_lora=False, precision=precision)
    assert set((tmp_path / "root").rglob("*.parquet")) == before, "it is refused before a shard is written"


def test_mixed_precision_is_a_harvest_of_its_own_with_a_measured_noise(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    exact = run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False)
    mixed = run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False, precision="mixed")
    assert exact.key != mixed.key
    ours, theirs = open_shards(f"{tmp_path}/{mixed.key}"), open_shards(f"{tmp_path}/{exact.key}")
    assert (ours.spec["numerics"], theirs.spec["numerics"]) == (NUMERICS["mixed"], NUMERICS["fp32"])
    for name in ("r2", "r4"):
        error = np.linalg.norm(ours.read(2, name) - theirs.read(2, name)) / np.linalg.norm(
            theirs.read(2, name)
        )
        snr = ours.source(name).facts["noise"]["blocks.2.hook_resid_post"]["snr"]
        assert 1e-4 < error < 0.1
        assert 0.1 < snr * error**2 < 10, "the noise measured on a sample is that of the whole"
        assert theirs.source(name).facts["noise"]["blocks.2.hook_resid_post"]["snr"] > 1e6


def test_sites_are_stored_beside_the_residual_stream_and_added_later_alone(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    first = run(tmp_path, tiny_model, list(tiny_adapters), random_lora=False)
    before = hashes(tmp_path, first.key)
    run(
        tmp_path,
        tiny_model,
        list(tiny_adapters),
        random_lora=False,
        sites=("resid_post", "attn_out", "mlp_out"),
    )
    assert before.items() < hashes(tmp_path, first.key).items()
    shards = open_shards(f"{tmp_path}/{first.key}")
    assert len(shards.hookpoints) == 6
    for source in ("base", "r4"):
        parts = [shards.read(f"blocks.2.hook_{site}", source) for site in ("attn_out", "mlp_out")]
        stream = shards.read(1, source) + sum(parts)
        assert np.linalg.norm(stream - shards.read(2, source)) <= 2e-3 * np.linalg.norm(stream)
    with pytest.raises(ConfigError, match="must hold resid_post"):
        HarvestConfig(sites=("attn_out",))


def test_the_share_that_a_block_injects_stands_in_the_source(tiny_model: Path, tmp_path: Path) -> None:
    early = save_adapter(tmp_path / "early", tiny_model, layers_to_transform=[1])
    done = run(tmp_path / "root", tiny_model, [early], random_lora=False)
    injected = open_shards(f"{tmp_path}/root/{done.key}").source("early").facts["injected"]
    assert injected["blocks.1.hook_resid_post"] == pytest.approx(1.0)
    assert injected["blocks.2.hook_resid_post"] == 0.0


def test_adapters_of_other_kinds_are_harvested_beside_plain_ones(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    dora = save_adapter(tmp_path / "dora", tiny_model, use_dora=True)
    norms = save_adapter(tmp_path / "norms", tiny_model, modules_to_save=["post_attention_layernorm"])
    tensors = load_file(norms / WEIGHTS)
    save_file(
        {n: t * 1.5 if "norm" in n else t for n, t in tensors.items()},
        norms / WEIGHTS,
        metadata={"format": "pt"},
    )
    alone = run(tmp_path / "alone", tiny_model, [tiny_adapters[0]], random_lora=False)
    done = run(tmp_path / "all", tiny_model, [dora, norms, tiny_adapters[0]])
    before, after = hashes(tmp_path / "alone", alone.key), hashes(tmp_path / "all", done.key)
    assert before.items() < after.items(), "neither the base nor the plain adapter sees the others"
    assert set(open_shards(f"{tmp_path}/all/{done.key}").adapters) == {
        "dora",
        "norms",
        "r2",
        "random",
        "random-r4",
    }


def test_a_damaged_shard_is_redone_by_the_next_harvest_and_nothing_else(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    done = run(tmp_path, tiny_model, [tiny_adapters[0]], random_lora=False)
    undisturbed = hashes(tmp_path, done.key)
    truncated, gone = (
        tmp_path / done.key / row.file for row in Manifest.load(Storage(str(tmp_path)), done.key).rows[:3:2]
    )
    truncated.write_bytes(truncated.read_bytes()[:-9])
    gone.unlink()
    kept = {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("sources/*/*.parquet") if p not in (truncated, gone)
    }
    with pytest.raises(ShardError, match="un the harvest again"):
        open_shards(f"{tmp_path}/{done.key}").verify(hashes=False)
    run(tmp_path, tiny_model, [tiny_adapters[0]], random_lora=False)
    assert hashes(tmp_path, done.key) == undisturbed
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    open_shards(f"{tmp_path}/{done.key}").verify()


FULL = """
import sys
from pathlib import Path
from deltasae_ray.errors import StorageError
from deltasae_ray.harvest import run as stage, sources
from tests.harvest.study import run, run_units_here
stage.run_units = sources.run_units = run_units_here
try:
    run(sys.argv[1], Path(sys.argv[2]), [Path(sys.argv[3])], random_lora=False)
except StorageError as e:
    print(e)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_harvest_that_fills_the_disk_says_so_and_goes_on_once_there_is_room(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    calm = run(tmp_path / "calm", tiny_model, [tiny_adapters[0]], random_lora=False)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no mount: {mounted.stderr}")
    try:
        said = subprocess.run(
            [sys.executable, "-c", FULL, small, tiny_model, tiny_adapters[0]],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            "cannot be written" in said.stdout
            and "No space left" in said.stdout
            and "then run again" in said.stdout
        )
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        run(small, tiny_model, [tiny_adapters[0]], random_lora=False)
        assert hashes(small, calm.key) == hashes(tmp_path / "calm", calm.key)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_what_a_worker_notes_is_json_without_nan(tiny_model: Path, tmp_path: Path) -> None:
    late = save_adapter(tmp_path / "late", tiny_model, layers_to_transform=[2])
    done = run(tmp_path / "root", tiny_model, [late], random_lora=False)
    facts = open_shards(f"{tmp_path}/root/{done.key}").source("late").facts
    json.dumps(facts, allow_nan=False)
    assert facts["noise"]["blocks.1.hook_resid_post"]["signal"] == 0.0
    assert "blocks.1.hook_resid_post" not in facts["injected"], "no share of nothing"
