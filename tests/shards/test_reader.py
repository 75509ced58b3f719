import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltasae_ray.errors import ConfigError, HookpointError, PrecisionError, ShardError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.records import Unit, write_source, write_units
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage
from tests.shards.made import (
    D_MODEL,
    HOOKS,
    KEY,
    SOURCES,
    begin,
    make_harvest,
    make_unit,
    make_vectors,
    stored,
    write_unit,
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_every_column_comes_back_in_the_order_of_the_tokens(storage: Storage) -> None:
    units = sorted(make_harvest(storage), key=lambda u: u.name)
    shards = open_shards(storage.root)
    assert shards.hookpoints == ("blocks.2.hook_resid_post", "blocks.10.hook_resid_post")
    assert shards.adapters == ("r4", "r16", "random")
    assert (shards.d_model, shards.key) == (D_MODEL, KEY)
    for split in (None, "fit", "eval"):
        chosen = [u for u in units if split in (None, u.split)]
        for source in SOURCES:
            for hook in HOOKS:
                expected = stored(np.concatenate([make_vectors(u, source.digest, hook) for u in chosen]))
                read = shards.read(hook, source.name, split)
                assert read.dtype == np.float32
                assert np.array_equal(read, expected)
        tokens = shards.tokens(split)
        assert len(tokens) == len(expected)
        assert tokens.doc_id.tolist() == [d for u in chosen for d in u.row_doc_ids()]
        assert tokens.token_id.tolist() == [t for u in chosen for t in u.token_ids()]
        assert tokens.position.tolist() == [p for u in chosen for p in u.positions()]
        assert tokens.marker.tolist() == [m for u in chosen for m in u.marker[u.mask]]
        assert tokens.split.tolist() == [u.split for u in chosen for _ in range(u.num_tokens)]
        assert tokens.corpus.tolist() == [u.corpus for u in chosen for _ in range(u.num_tokens)]
        assert tokens.doc_id.dtype == tokens.corpus.dtype == tokens.split.dtype == object
        assert (tokens.position.dtype, tokens.token_id.dtype, tokens.marker.dtype) == (
            np.int32,
            np.int32,
            bool,
        )


def test_a_hookpoint_is_named_by_number_digits_name_or_value_and_the_default_is_the_base(
    storage: Storage,
) -> None:
    make_harvest(storage, 2)
    shards = open_shards(storage.root)
    first = shards.read(10)
    for name in ("10", "blocks.10.hook_resid_post", Hookpoint(10)):
        assert np.array_equal(shards.read(name, "base"), first)


def test_compacting_and_layers_added_later_do_not_change_what_is_read(storage: Storage) -> None:
    units = make_harvest(storage, 3)
    before = open_shards(storage.root).read(2, "r4")
    for unit in units:
        write_unit(storage, unit, {s.digest: (Hookpoint(5),) for s in SOURCES})
    Manifest.compact(storage, KEY)
    shards = open_shards(storage.root)
    assert shards.hookpoints == tuple(str(Hookpoint(n)) for n in (2, 5, 10))
    assert np.array_equal(shards.read(2, "r4"), before)
    ordered = sorted(units, key=lambda u: u.name)
    assert np.array_equal(
        shards.read(5, "r4"),
        stored(np.concatenate([make_vectors(u, "04" * 8, Hookpoint(5)) for u in ordered])),
    )


def test_a_split_without_units_is_empty(storage: Storage) -> None:
    make_harvest(storage, 2)
    shards = open_shards(storage.root)
    assert shards.read(2, split="adapt").shape == (0, D_MODEL)
    assert len(shards.tokens("adapt")) == 0


def test_what_is_not_there_is_said_with_what_is(storage: Storage) -> None:
    make_harvest(storage, 1)
    shards = open_shards(storage.root)
    with pytest.raises(
        HookpointError, match=r"blocks.3.hook_resid_post was not harvested: there are \['blocks.2"
    ):
        shards.read(3)
    with pytest.raises(ShardError, match=r"no source 'r8': there are \['base', 'r4', 'r16', 'random'\]"):
        shards.read(2, "r8")
    with pytest.raises(ConfigError, match="split='test'"):
        shards.read(2, split="test")


def test_an_incomplete_harvest_names_what_is_missing_and_the_rest_stays_readable(storage: Storage) -> None:
    units = [make_unit(index) for index in range(4)]
    begin(storage, units)
    for unit in units[:3]:
        write_unit(storage, unit)
    write_unit(storage, units[3], {"base": HOOKS})
    shards = open_shards(storage.root)
    with pytest.raises(
        ShardError,
        match=f"'r4' lacks 1 of 4 units at blocks.2.hook_resid_post .{units[3].name}.*only these are redone",
    ):
        shards.read(2, "r4")
    assert len(shards.read(2)) == len(shards.tokens()) == sum(u.num_tokens for u in units)
    assert len(shards.read(2, "r4", "eval")) == units[2].num_tokens


def test_units_that_no_source_holds_leave_no_token_table(storage: Storage) -> None:
    units = [make_unit(index) for index in range(8)]
    begin(storage, units)
    with pytest.raises(ShardError, match="8 of 8 units are not harvested .* and 3 more"):
        open_shards(storage.root).tokens()


def test_only_the_units_of_this_study_are_read(storage: Storage) -> None:
    units = make_harvest(storage, 4)
    write_unit(storage, units[3], {"base": (Hookpoint(7),)})
    write_units(storage, KEY, map(Unit.of, units[:2]))
    for name in storage.list(KEY, suffix=".parquet"):
        if units[3].name in name:
            storage.write_bytes(name, b"damaged")
    shards = open_shards(storage.root)
    assert len(shards.read(2)) == sum(u.num_tokens for u in units[:2])
    assert shards.hookpoints == tuple(str(h) for h in HOOKS)
    shards.verify()


def test_a_read_takes_the_bytes_of_one_column_only(storage: Storage) -> None:
    rng = np.random.default_rng(0)
    mask = np.ones((8, 128), bool)
    unit = replace(
        make_unit(0),
        input_ids=rng.integers(0, 9, mask.shape).astype(np.int32),
        mask=mask,
        marker=mask,
        doc_ids=("d",) * 8,
    )
    begin(storage, [unit])
    hooks = tuple(Hookpoint(n) for n in range(8))
    row = write_shard(
        storage, KEY, "base", unit, {h: rng.standard_normal((1024, D_MODEL), np.float32) for h in hooks}
    )
    from deltasae_ray.shards.manifest import commit_unit

    commit_unit(storage, KEY, [row])
    shards = open_shards(storage.root)
    shards.read(0)

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    shards.read(3)
    assert bytes_read() - before < 0.35 * row.bytes


def test_a_storage_root_a_harvest_folder_and_a_copy_of_it_open_the_same(
    storage: Storage, tmp_path: Path
) -> None:
    make_harvest(storage, 2)
    expected = open_shards(storage.root).read(2, "r4")
    copy = shutil.copytree(storage.local(KEY), tmp_path / "elsewhere" / "mine")
    for root in (
        storage.local(KEY),
        f"{storage.root}/{KEY}/",
        copy,
        storage.local("").as_uri(),
        storage.local(KEY).as_uri(),
    ):
        assert np.array_equal(open_shards(root).read(2, "r4"), expected)
    assert open_shards(storage.local(KEY)).key == KEY
    assert open_shards(storage.local(KEY)).storage.path("") == storage.path("")


def test_study_json_chooses_among_harvests_and_without_it_they_are_listed(storage: Storage) -> None:
    make_harvest(storage, 1)
    shutil.copytree(storage.local(KEY), storage.local("harvest/other"))
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"2 harvests and no study.json.*{KEY}.*harvest/other"):
            open_shards(storage.root)
        storage.write_json("study.json", {"sources": ["base"]})
    storage.write_json("study.json", {"harvest": "harvest/other"})
    assert open_shards(storage.root).key == "harvest/other"
    storage.write_json("study.json", {"harvest": "harvest/gone"})
    with pytest.raises(ShardError, match="study.json names 'harvest/gone', which is not there"):
        open_shards(storage.root)
    storage.write_bytes("study.json", b'{"harv')
    with pytest.raises(ShardError, match="study.json is not valid JSON"):
        open_shards(storage.root)


def test_a_root_without_a_harvest_says_what_to_run(storage: Storage, tmp_path: Path) -> None:
    for root in (storage.root, tmp_path / "nowhere"):
        with pytest.raises(ShardError, match="there is no harvest below .*: run jobs/harvest.py"):
            open_shards(root)


def test_of_two_adapters_with_one_name_the_study_or_the_digest_decides(storage: Storage) -> None:
    (unit,) = make_harvest(storage, 1)
    again = replace(SOURCES[2], digest="44" * 8)
    write_source(storage, KEY, again)
    write_unit(storage, unit, {again.digest: HOOKS})
    with pytest.raises(ShardError, match="'r4' names 2 sources"):
        open_shards(storage.root).read(2, "r4")
    assert np.array_equal(
        open_shards(storage.root).read(2, again.digest), stored(make_vectors(unit, again.digest, HOOKS[0]))
    )
    storage.write_json("study.json", {"harvest": KEY, "sources": ["base", again.digest]})
    shards = open_shards(storage.root)
    assert shards.adapters == ("r4",)
    assert np.array_equal(shards.read(2, "r4"), stored(make_vectors(unit, again.digest, HOOKS[0])))


def test_a_shard_set_travels_between_processes(storage: Storage) -> None:
    make_harvest(storage, 2)
    shards = open_harvest(storage, KEY)
    shards.read(2)
    assert np.array_equal(pickle.loads(pickle.dumps(shards)).read(2, "r4"), shards.read(2, "r4"))


def test_a_poisoned_vector_names_unit_source_and_hookpoint_and_writes_nothing(storage: Storage) -> None:
    unit = make_unit(0)
    vectors = {h: make_vectors(unit, "base", h) for h in HOOKS}
    vectors[HOOKS[1]][4, 3] = np.nan
    with pytest.raises(
        PrecisionError,
        match=f"unit {unit.name}, source base, blocks.10.hook_resid_post: 1 of {unit.num_tokens} rows",
    ):
        write_shard(storage, KEY, "base", unit, vectors)
    assert storage.list("") == []
