"""Room on disk: what a plan has still to write is asked for, and only this study's own shards and
dictionaries count as written."""

from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.errors import StorageError
from deltasae_ray.harvest.key import harvest_key
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.manifest import commit_unit
from deltasae_ray.shards.records import ShardRow, shard_file
from deltasae_ray.storage import Storage
from deltasae_ray.study.controls import control_points
from deltasae_ray.study.disk_check import check_disk, dictionaries_there, shards_there
from deltasae_ray.study.inputs import Study, open_study
from deltasae_ray.study.plan import Plan, make_plan
from deltasae_ray.study.plan_costs import dictionary_bytes
from tests.study.streamed import config
from tests.study.words import words
from tests.tiny import save_adapter

FIT = ("adapt", "harvest", "fit")


@pytest.fixture
def study(tiny_model: Path, tmp_path: Path) -> Study:
    """Nothing of it is written."""
    asked = config(words(tiny_model, tmp_path / "root", "dry_run=true"))
    return open_study(asked, Storage(asked.storage.root))


def room(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    monkeypatch.setattr(Storage, "free_bytes", lambda _: int(num_bytes))


def written(
    study: Study, key: str, source: str, hookpoints: tuple[int, ...] = (1, 2), num_bytes: int = 1000
) -> None:
    """One shard on record."""
    hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in hookpoints)
    row = ShardRow(
        "unit", source, "fit", "domain", hooks, shard_file("unit", source, hooks), "0" * 64, 10, num_bytes, 32
    )
    commit_unit(study.storage, key, [row])


def test_a_plan_that_the_disk_cannot_hold_is_refused_with_the_remedy(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(study, FIT)
    room(monkeypatch, 1.2 * (plan.shard_bytes + plan.dictionary_bytes))
    check_disk(study, plan)
    room(monkeypatch, plan.shard_bytes + plan.dictionary_bytes)
    with pytest.raises(
        StorageError, match=r"are free: free space, choose another storage\.root, or lower corpus\.fit_tokens"
    ):
        check_disk(study, plan)
    check_disk(study, replace(plan, seconds={"adapt": 1.0}))  # which writes neither shards nor dictionaries


def test_dictionaries_are_part_of_the_plan(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan((), dict.fromkeys(FIT, 1.0), shard_bytes=0, dictionary_bytes=1000)
    room(monkeypatch, 1000)
    with pytest.raises(StorageError, match="of dictionaries"):
        check_disk(study, plan)
    check_disk(study, replace(plan, seconds={"harvest": 1.0}))


def test_shards_of_another_text_another_source_or_another_layer_are_not_this_studys(study: Study) -> None:
    key = harvest_key(study.kept, study.model)
    written(study, key, "an adapter of another study")
    written(study, "harvest/of-another-text", BASE)
    assert shards_there(study) == 0
    written(study, key, BASE, (1, 2, 3), 900)
    assert shards_there(study) == 600, "two of its three columns are this study's"


def test_columns_of_modules_are_planned_and_weighed_by_their_rank(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "given", tiny_model, rank=4)
    shared = (f"adapters=[{folder}]", "adapt.ranks=[]", "dry_run=true")

    def opened(*more: str) -> Study:
        asked = config(words(tiny_model, tmp_path / "root", *shared, *more))
        return open_study(asked, Storage(asked.storage.root))

    plain, with_modules = opened(), opened("harvest.sites=[resid_post,lora]")
    tokens, (ref,) = plain.corpus.num_tokens(), plain.given
    more = make_plan(with_modules, FIT).shard_bytes - make_plan(plain, FIT).shard_bytes
    assert more == tokens * 2 * len(plain.layers) * len(plain.cfg.adapt.targets) * 3 * (4 + 1), (
        "the adapter and two random ones"
    )
    names = (
        "blocks.1.hook_resid_post",
        "blocks.1.mlp.down_proj.hook_lora",
        "blocks.1.self_attn.q_proj.hook_lora",
    )  # 32 + 4 + 4 wide
    hooks = tuple(map(str, sorted(map(Hookpoint.parse, names))))
    row = ShardRow(
        "unit",
        ref.digest,
        "fit",
        "domain",
        hooks,
        shard_file("unit", ref.digest, hooks),
        "0" * 64,
        10,
        1000,
        32,
    )
    commit_unit(plain.storage, harvest_key(plain.kept, plain.model), [row])
    assert (shards_there(plain), shards_there(with_modules)) == (800, 1000)


def test_dictionaries_that_are_there_are_not_asked_for_again(study: Study) -> None:
    key, fit = harvest_key(study.kept, study.model), study.cfg.fit
    for point in control_points(study.layers, fit, (), frozenset({"base"}), toy_reference=True):
        study.storage.write_json(f"{point.key(key, {BASE: BASE}, fit)}/manifest.json", {})
    study.storage.write_json("dictionaries/of-another-study/manifest.json", {})
    assert dictionaries_there(study) == 2 * 4 * dictionary_bytes(study.cfg, 32, 48)
