"""What one worker fits, without Ray: reads, checkpoints, manifests, and rows that cannot be fitted."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltasae_ray.errors import DictionaryError
from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.progress import progress
from deltasae_ray.fit.run import _raise_failures, fitted_points, keys_of
from deltasae_ray.fit.worker import FitJob, fit_share, groups
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, file_sha256
from tests.fit.made import CFG, D_MODEL, KEY, make_harvest, point


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
    assert row.metrics["fvu"] == pytest.approx(((x - x_hat) ** 2).sum() / ((x - dictionary.mean.numpy()) ** 2).sum(), rel=1e-4)
    assert row.metrics["fvu"] < 0.5 and row.metrics["l0"] <= 4 and 0 < row.metrics["alive"] <= 1
    assert row.curve[-1][0] == CFG.steps and row.curve[0][1] > row.curve[-1][1]
    assert (dictionary.d_model, dictionary.meta["hookpoint"]) == (D_MODEL, "blocks.1.hook_resid_post")
    manifest = storage.read_json(f"{row.key}/manifest.json")
    assert manifest["sha256"] == {name: file_sha256(storage.local(row.key) / name) for name in manifest["sha256"]}
    assert sorted(p.name for p in storage.local(row.key).iterdir()) == sorted([*manifest["sha256"], "manifest.json"])


def test_all_dictionaries_of_a_source_and_layer_share_one_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_every_point_is_dealt_to_exactly_one_worker() -> None:
    points = [point(adapter, layer, seed=s) for adapter in ("base", "r4", "late") for layer in (1, 3) for s in (0, 1)]
    dealt = [p for rank in range(4) for group in groups(points)[rank::4] for p in group]
    assert sorted(dealt) == sorted(points)


def test_halves_are_fitted_on_their_own_documents(storage: Storage) -> None:
    halves = [point("base", documents=half) for half in ("A", "B")]
    fit(storage, *halves, point("base"))
    rows = {p.documents: row.rows for p, row in fitted_points(storage, KEY, [*halves, point("base")], CFG).items()}
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


def test_rows_that_cannot_be_fitted_do_not_stop_the_others(storage: Storage) -> None:
    points = [point("late", 1), point("late", 3), point("r4", 1)]
    fit(storage, *points)
    done = fitted_points(storage, KEY, points, CFG)
    assert set(done) == {points[1], points[2]}
    with pytest.raises(DictionaryError, match="late layer 1.*rows are equal"):
        _raise_failures(storage, {points[0]: keys_of(storage, KEY, points, CFG)[points[0]]})


def test_too_few_rows_for_the_size_are_an_error_that_names_both(storage: Storage) -> None:
    large = point(d_sae=1000)
    fit(storage, large)
    with pytest.raises(DictionaryError, match=r"640 training rows for 1000 latents"):
        _raise_failures(storage, keys_of(storage, KEY, [large], CFG))


@pytest.mark.parametrize("damage", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", None])
def test_a_damaged_or_foreign_checkpoint_is_named(storage: Storage, damage: bytes | None) -> None:
    key = keys_of(storage, KEY, [point()], CFG)[point()]
    if damage is None:
        checkpoint.write(storage, key, Trainer(torch.randn(100, D_MODEL), replace(point(), d_sae=20).recipe(CFG), 0).state_dict())
    else:
        storage.write_bytes(f"{key}/checkpoint.safetensors", damage)
        assert checkpoint.steps_done(storage, key) == 0
    fit(storage, point())
    assert not fitted_points(storage, KEY, [point()], CFG)
    assert "checkpoint" in storage.read_json(f"{key}/failed.json")["message"]


def test_a_checkpoint_holds_no_pickle_and_gives_the_state_back(storage: Storage) -> None:
    trainer = Trainer(torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(0)), point().recipe(CFG), 0)
    for _ in range(3):
        trainer.step()
    checkpoint.write(storage, "dictionaries/x", trainer.state_dict())
    state, found = trainer.state_dict(), checkpoint.read(storage, "dictionaries/x")
    assert found is not None and checkpoint.steps_done(storage, "dictionaries/x") == 3
    assert {k: v for k, v in found.items() if k != "tensors"} == json.loads(json.dumps({k: v for k, v in state.items() if k != "tensors"}))
    assert all(torch.equal(found["tensors"][name], tensor) for name, tensor in state["tensors"].items())


def test_progress_counts_the_steps_of_manifests_and_checkpoints(storage: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    points = [point(), point(seed=1)]
    keys = keys_of(storage, KEY, points, CFG)
    with progress(storage, list(keys.values()), CFG.steps, "fit", show=True):
        fit(storage, points[0])
        trainer = Trainer(torch.randn(100, D_MODEL), points[1].recipe(CFG), 1)
        trainer.step()
        checkpoint.write(storage, keys[points[1]], trainer.state_dict())
    assert f"{CFG.steps + 1}/{2 * CFG.steps}" in capfd.readouterr().err
