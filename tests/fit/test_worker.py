"""What one worker fits, without Ray: reads, checkpoints, manifests, and rows that cannot be fitted."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from deltasae_ray.errors import DictionaryError, PrecisionError, ShardError, StorageError
from deltasae_ray.fit import checkpoint, stacks
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.fitting import FitJob
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.progress import progress
from deltasae_ray.fit.run import fitted_points, keys_of, raise_failures
from deltasae_ray.fit.worker import fit_rounds, fit_share, groups
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.stacked import train_together
from deltasae_ray.sae.start import random_rows
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, file_sha256
from tests.fit.made import CFG, D_MODEL, KEY, make_harvest, make_unit, point


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    make_harvest(made)
    return made


def fit(storage: Storage, *points: FitPoint, rank: int = 0, world: int = 1) -> None:
    fit_share(FitJob(storage, KEY, points, CFG), rank, world, "cpu")


def test_a_fitted_point_is_a_dictionary_with_a_manifest(storage: Storage) -> None:
    fit(storage, point())
    row = fitted_points(storage, KEY, [point()], CFG)[point()]
    shards = open_harvest(storage, KEY)
    tokens = shards.tokens("fit")
    assert row.rows == int((tokens.position > 0).sum()) < len(tokens)
    dictionary = Dictionary.load(storage.local(row.key))
    x = shards.read(1, "r4", split="eval")[shards.tokens("eval").position > 0]
    x_hat = dictionary.decode(dictionary.encode(x)).numpy()
    assert row.metrics["fvu"] == pytest.approx(
        ((x - x_hat) ** 2).sum() / ((x - dictionary.mean.numpy()) ** 2).sum(), rel=1e-4
    )
    assert row.metrics["fvu"] < 0.5 and row.metrics["l0"] <= 4 and 0 < row.metrics["alive"] <= 1
    assert row.curve[-1][0] == CFG.steps and row.curve[0][1] > row.curve[-1][1]
    assert (dictionary.d_model, dictionary.meta["hookpoint"]) == (D_MODEL, "blocks.1.hook_resid_post")
    manifest = storage.read_json(f"{row.key}/manifest.json")
    assert manifest["sha256"] == {
        name: file_sha256(storage.local(row.key) / name) for name in manifest["sha256"]
    }
    assert sorted(p.name for p in storage.local(row.key).iterdir()) == sorted(
        [*manifest["sha256"], "manifest.json"]
    )


def test_all_dictionaries_of_a_source_and_layer_share_one_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Counter()
    read = ShardSet.read

    def counted(self: ShardSet, hookpoint: int, adapter: str = "base", split: str | None = None) -> object:
        reads[hookpoint, adapter, split] += 1
        return read(self, hookpoint, adapter, split)

    monkeypatch.setattr(ShardSet, "read", counted)
    points = [point(layer=layer, d_sae=d, seed=s) for layer in (1, 3) for d in (32, 48) for s in (0, 1)]
    fit(storage, *points)
    assert reads == {(layer, "r4", split): 1 for layer in (1, 3) for split in ("fit", "eval")}
    assert len(fitted_points(storage, KEY, points, CFG)) == 8
    fit(storage, *points)
    assert sum(reads.values()) == 4  # what manifests list is not even read


def test_no_dictionary_is_fitted_to_a_flipped_byte(storage: Storage) -> None:
    """What was stored is fitted to, or nothing: of vectors a flipped bit makes other vectors, which nothing
    else would notice."""
    row = next(
        r for r in open_harvest(storage, KEY).manifest.rows if r.source == "04" * 8 and r.split == "fit"
    )
    path = storage.local(f"{KEY}/{row.file}")
    group = pq.read_metadata(path).row_group(0)
    (column,) = [
        c
        for c in map(group.column, range(group.num_columns))
        if c.path_in_schema == "blocks.1.hook_resid_post"
    ]
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(
        ShardError,
        match=(
            f"{path} cannot be read as a shard.*delete it and run the harvest again: only this unit is redone"
        ),
    ):
        fit(storage, point())
    assert fitted_points(storage, KEY, [point()], CFG) == {}
    others = [point(layer=3), point("base")]
    fit(storage, *others)
    assert len(fitted_points(storage, KEY, others, CFG)) == 2


def test_every_point_is_dealt_to_exactly_one_worker() -> None:
    points = [
        point(adapter, layer, seed=s)
        for adapter in ("base", "r4", "late")
        for layer in (1, 3)
        for s in (0, 1)
    ]
    dealt = [p for rank in range(4) for group in groups(points)[rank::4] for p in group]
    assert sorted(dealt) == sorted(points)


def test_halves_are_fitted_on_their_own_documents(storage: Storage) -> None:
    halves = [point("base", documents=half) for half in ("A", "B")]
    fit(storage, *halves, point("base"))
    rows = {
        p.documents: row.rows for p, row in fitted_points(storage, KEY, [*halves, point("base")], CFG).items()
    }
    assert rows["A"] + rows["B"] == rows["all"] and min(rows.values()) > 0


def test_an_interrupted_fit_continues_from_its_checkpoint_to_the_same_bytes(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = Storage(str(tmp_path / "calm"))
    make_harvest(calm)
    fit(calm, point())
    steps = 0
    step = Trainer.step

    def interrupted(self: Trainer) -> None:
        nonlocal steps
        steps += 1
        if steps == 36:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(storage, point())
    key = keys_of(storage, KEY, [point()], CFG)[point()]
    assert checkpoint.steps_done(storage, key) == 30 and not fitted_points(storage, KEY, [point()], CFG)
    fit(storage, point())
    assert steps == 36 + 30
    assert storage.read_bytes(f"{key}/manifest.json") == calm.read_bytes(f"{key}/manifest.json")
    assert checkpoint.read(storage, key) is None


STACK = [point(layer=layer, seed=seed) for layer in (1, 3) for seed in (0, 1)] + [
    point("base", documents="A")
]


def calm_manifests(folder: Path, points: list[FitPoint]) -> dict[FitPoint, bytes]:
    """Of dictionaries that were fitted one by one."""
    calm = Storage(str(folder))
    make_harvest(calm)
    for p in points:
        fit(calm, p)
    return {p: calm.read_bytes(f"{key}/manifest.json") for p, key in keys_of(calm, KEY, points, CFG).items()}


@pytest.mark.parametrize("stop", [1, 3, 13])
def test_an_interrupted_stack_ends_with_the_bytes_of_dictionaries_fitted_one_by_one(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Also where the kill falls between the checkpoints of one round, so that some members have more steps
    behind them."""
    written, write = 0, checkpoint.write

    def interrupted(*state: Any) -> None:
        nonlocal written
        if written == stop:
            raise KeyboardInterrupt
        written += 1
        write(*state)

    together: list[int] = []
    monkeypatch.setattr(
        stacks,
        "train_together",
        lambda members, *how: together.append(len(members)) or train_together(members, *how),
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write", interrupted)
        fit(storage, *STACK)
    keys = keys_of(storage, KEY, STACK, CFG)
    assert len({checkpoint.steps_done(storage, key) for key in keys.values()}) == 2
    fit(storage, *STACK)
    assert set(together) == {len(STACK)}
    assert {p: storage.read_bytes(f"{key}/manifest.json") for p, key in keys.items()} == calm_manifests(
        tmp_path / "calm", STACK
    )


def test_a_member_that_runs_off_to_infinity_leaves_its_stack_unharmed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, bad = ShardSet.read, point("base")
    points = [bad, point(), point(seed=1)]

    def huge(self: ShardSet, hookpoint: int, adapter: str = "base", split: str | None = None) -> object:
        x = read(self, hookpoint, adapter, split)
        return x * np.float32(1e30) if adapter == "base" else x

    expected = calm_manifests(tmp_path / "calm", points[1:])
    monkeypatch.setattr(ShardSet, "read", huge)
    fit(storage, *points)
    assert set(fitted_points(storage, KEY, points, CFG)) == set(points[1:])
    keys = keys_of(storage, KEY, points, CFG)
    assert {p: storage.read_bytes(f"{keys[p]}/manifest.json") for p in points[1:]} == expected
    assert "base layer 1" in storage.read_json(f"{keys[bad]}/failed.json")["message"]


def test_reads_are_held_together_only_where_their_dictionaries_stack_and_their_rows_fit() -> None:
    reads = groups([point(layer=layer, d_sae=d) for layer in (1, 3) for d in (32, 48)])
    points = [p for read in reads for p in read]

    def stacked(cfg: FitConfig, num_bytes: int = 1, memory: int = 2**30) -> list[list[list[int]]]:
        size = stacks.sizes(points, cfg, D_MODEL, num_bytes, memory, "cpu")
        held = stacks.held_together(reads, size)
        return [
            [[p.layer for p in stack] for stack in stacks.of_one_recipe(points, cfg, size)] for points in held
        ]

    assert stacked(CFG) == [[[1, 3], [1, 3]]]
    assert stacked(replace(CFG, batch_tokens=10**6)) == [[[1], [1]], [[3], [3]]]
    assert stacked(replace(CFG, layout="ddp", workers=2)) == [[[1], [1]], [[3], [3]]]
    assert stacked(CFG, num_bytes=6, memory=40) == [[[1], [1]], [[3], [3]]]  # a quarter of it holds one read
    assert stacked(CFG, num_bytes=5, memory=40) == [[[1, 3], [1, 3]]]


def test_an_interrupted_fit_to_gaussian_rows_draws_the_same_rows_again(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shard holds them: what a later worker makes of the moments is what the first one made."""
    gaussian, calm = replace(point(), control="gaussian"), Storage(str(tmp_path / "calm"))
    make_harvest(calm)
    fit(calm, gaussian)
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self: step(self) if self.steps_done < 36 else pytest.fail("killed")
    )
    with pytest.raises(pytest.fail.Exception):
        fit(storage, gaussian)
    monkeypatch.setattr(Trainer, "step", step)
    key = keys_of(storage, KEY, [gaussian], CFG)[gaussian]
    assert checkpoint.steps_done(storage, key) == 30
    fit(storage, gaussian, point())
    assert storage.read_bytes(f"{key}/manifest.json") == calm.read_bytes(f"{key}/manifest.json")
    found = fitted_points(storage, KEY, [gaussian, point()], CFG)
    assert found[gaussian].rows == found[point()].rows
    assert (
        found[point()].metrics["fvu"] < found[gaussian].metrics["fvu"]
    )  # both on the real held-out rows, which have atoms
    assert Dictionary.load(storage.local(key)).meta["control"] == "gaussian"


def test_controls_share_the_read_of_what_they_are_held_against(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Counter()
    read = ShardSet.read

    def counted(self: ShardSet, hookpoint: int, adapter: str = "base", split: str | None = None) -> object:
        reads[hookpoint, adapter, split] += 1
        return read(self, hookpoint, adapter, split)

    monkeypatch.setattr(ShardSet, "read", counted)
    points = [point(), replace(point(), control="gaussian"), replace(point(), control="frozen_decoder")]
    fit(storage, *points)
    assert set(reads.values()) == {1} and len(fitted_points(storage, KEY, points, CFG)) == 3
    frozen = Dictionary.load(storage.local(keys_of(storage, KEY, points, CFG)[points[2]]))
    assert torch.equal(frozen.W_dec, random_rows(32, D_MODEL, torch.Generator().manual_seed(0)))


def test_rows_that_cannot_be_fitted_do_not_stop_the_others(storage: Storage) -> None:
    points = [point("late", 1), point("late", 3), point("r4", 1)]
    fit(storage, *points)
    done = fitted_points(storage, KEY, points, CFG)
    assert set(done) == {points[1], points[2]}
    with pytest.raises(DictionaryError, match="late layer 1.*rows are equal"):
        raise_failures(storage, {points[0]: keys_of(storage, KEY, points, CFG)[points[0]]})


def damaged(storage: Storage, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads give NaN in the first `rows` tokens of fit that are not at position 0, as a damaged model would
    have written them."""
    read = ShardSet.read

    def with_nan(self: ShardSet, hookpoint: int, adapter: str = "base", split: str | None = None) -> object:
        x = read(self, hookpoint, adapter, split).copy()
        if split == "fit":
            x[(self.tokens("fit").position > 0).nonzero()[0][:rows], 3] = float("nan")
        return x

    monkeypatch.setattr(ShardSet, "read", with_nan)


def test_a_few_rows_that_are_not_finite_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "root"))
    make_harvest(storage, units=60)  # 1280 training tokens: one may be lost
    damaged(storage, 1, monkeypatch)
    fit(storage, point())
    row = fitted_points(storage, KEY, [point()], CFG)[point()]
    manifest = storage.read_json(f"{row.key}/manifest.json")
    assert manifest["dropped_rows"] == {"fit": 1, "eval": 0} and row.rows == 1279


def test_many_rows_that_are_not_finite_are_an_error_that_counts_them(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(storage, 5, monkeypatch)
    fit(storage, point())
    with pytest.raises(PrecisionError, match="r4 layer 1.*5 of 640 rows"):
        raise_failures(storage, keys_of(storage, KEY, [point()], CFG))


def test_a_split_without_tokens_is_an_error_before_anything_is_trained(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [u for u in (make_unit(i) for i in range(6)) if u.split == "fit"]
    empty = Storage(f"{storage.root}-without-eval")
    make_harvest(empty, made=kept)
    monkeypatch.setattr(Trainer, "step", lambda self: pytest.fail("trained"))  # noqa: ARG005
    fit(empty, point())
    with pytest.raises(DictionaryError, match="corpus.eval_tokens"):
        raise_failures(empty, keys_of(empty, KEY, [point()], CFG))


def test_points_fitted_in_lock_step_end_as_those_fitted_one_by_one(storage: Storage, tmp_path: Path) -> None:
    points = (point(), point(layer=3))
    alone = Storage(str(tmp_path / "alone"))
    make_harvest(alone)
    fit(alone, *points)
    said = list(fit_rounds(FitJob(storage, KEY, points, CFG), "cpu"))
    assert [steps for steps, _ in said] == [15, 30, 45, 60] and said[0][1] > said[-2][1]
    one, other = (fitted_points(s, KEY, points, CFG) for s in (storage, alone))
    assert one == other
    assert said[-1][1] == pytest.approx(sum(row.metrics["fvu"] for row in one.values()) / 2)
    assert list(fit_rounds(FitJob(storage, KEY, points, CFG), "cpu")) == said[-1:]


def test_too_few_rows_for_the_size_are_an_error_that_names_both(storage: Storage) -> None:
    large = point(d_sae=1000)
    fit(storage, large)
    with pytest.raises(DictionaryError, match=r"640 training rows for 1000 latents"):
        raise_failures(storage, keys_of(storage, KEY, [large], CFG))


@pytest.mark.parametrize("damage", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", None])
def test_a_damaged_or_foreign_checkpoint_is_named(storage: Storage, damage: bytes | None) -> None:
    key = keys_of(storage, KEY, [point()], CFG)[point()]
    if damage is None:
        checkpoint.write(
            storage,
            key,
            Trainer(torch.randn(100, D_MODEL), replace(point(), d_sae=20).recipe(CFG), 0).state_dict(),
        )
    else:
        storage.write_bytes(f"{key}/checkpoint.safetensors", damage)
        assert checkpoint.steps_done(storage, key) == 0
    fit(storage, point())
    assert not fitted_points(storage, KEY, [point()], CFG)
    assert "checkpoint" in storage.read_json(f"{key}/failed.json")["message"]


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_none(storage: Storage) -> None:
    assert checkpoint.steps_done(storage, "dictionaries/y") == 0
    there = storage.local("dictionaries/z/checkpoint.safetensors")
    there.parent.mkdir(parents=True)
    there.symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match="leads out of .* by a symlink"):
        checkpoint.steps_done(storage, "dictionaries/z")


def test_a_checkpoint_holds_no_pickle_and_gives_the_state_back(storage: Storage) -> None:
    trainer = Trainer(
        torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(0)), point().recipe(CFG), 0
    )
    for _ in range(3):
        trainer.step()
    checkpoint.write(storage, "dictionaries/x", trainer.state_dict())
    state, found = trainer.state_dict(), checkpoint.read(storage, "dictionaries/x")
    assert found is not None and checkpoint.steps_done(storage, "dictionaries/x") == 3
    assert {k: v for k, v in found.items() if k != "tensors"} == json.loads(
        json.dumps({k: v for k, v in state.items() if k != "tensors"})
    )
    assert all(torch.equal(found["tensors"][name], tensor) for name, tensor in state["tensors"].items())


def test_progress_counts_the_steps_of_manifests_and_checkpoints(
    storage: Storage, capfd: pytest.CaptureFixture[str]
) -> None:
    points = [point(), point(seed=1)]
    keys = keys_of(storage, KEY, points, CFG)
    with progress(storage, list(keys.values()), CFG.steps, "fit", show=True):
        fit(storage, points[0])
        trainer = Trainer(torch.randn(100, D_MODEL), points[1].recipe(CFG), 1)
        trainer.step()
        checkpoint.write(storage, keys[points[1]], trainer.state_dict())
    assert f"{CFG.steps + 1} of {2 * CFG.steps} steps" in capfd.readouterr().err


def test_a_checkpoint_that_goes_while_it_is_read_is_none_and_one_that_stays_unread_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary that is finished removes its own; an object store then answers with an error of its own
    kind."""
    storage = Storage(str(tmp_path))
    checkpoint.write(storage, "dictionaries/x", {"tensors": {}, "steps_done": 30})

    def fails(_: bytes, *, gone: bool) -> dict:
        if gone:
            checkpoint.remove(storage, "dictionaries/x")
        raise OSError("NO_SUCH_KEY")

    monkeypatch.setattr(checkpoint, "_state", partial(fails, gone=False))
    with pytest.raises(StorageError, match="the same command continues"):
        checkpoint.steps_done(storage, "dictionaries/x")
    monkeypatch.setattr(checkpoint, "_state", partial(fails, gone=True))
    assert checkpoint.steps_done(storage, "dictionaries/x") == 0
