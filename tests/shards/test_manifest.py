import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.errors import ShardError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards import manifest as manifest_module
from deltasae_ray.shards.manifest import Manifest, commit_unit
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.records import ShardRow, read_sources, read_units, write_harvest, write_source
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage
from tests.shards.made import HOOKS, KEY, SOURCES, begin, make_harvest, make_unit, make_vectors, write_unit

DIGESTS = [source.digest for source in SOURCES]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def records(storage: Storage) -> list[str]:
    return storage.list(f"{KEY}/rows")


def test_a_shard_counts_only_when_its_record_does(storage: Storage) -> None:
    unit = make_unit(0)
    begin(storage, [unit])
    row = write_shard(storage, KEY, "base", unit, {h: make_vectors(unit, "base", h) for h in HOOKS})
    assert Manifest.load(storage, KEY).rows == ()
    assert Manifest.load(storage, KEY).missing([unit.name], dict.fromkeys(["base"], HOOKS)) == {
        unit.name: {"base": HOOKS}
    }
    commit_unit(storage, KEY, [row])
    assert Manifest.load(storage, KEY).rows == (row,)
    assert Manifest.load(storage, KEY).missing([unit.name], dict.fromkeys(["base"], HOOKS)) == {}


def test_a_unit_that_is_done_twice_has_one_record(storage: Storage) -> None:
    (unit,) = make_harvest(storage, 1)
    before = {name: storage.read_bytes(name) for name in storage.list(KEY)}
    digests = [source.digest for source in SOURCES]
    write_unit(storage, unit, dict.fromkeys(reversed(digests), HOOKS))
    assert {name: storage.read_bytes(name) for name in storage.list(KEY)} == before


def test_missing_names_the_work_of_a_new_rank_and_a_new_layer_and_nothing_else(storage: Storage) -> None:
    units = [u.name for u in make_harvest(storage, 2)]
    manifest = Manifest.load(storage, KEY)
    assert manifest.missing(units, dict.fromkeys(DIGESTS, HOOKS)) == {}
    assert manifest.missing(units, dict.fromkeys([*DIGESTS, "r32"], HOOKS)) == {
        u: {"r32": HOOKS} for u in units
    }
    more = (Hookpoint(5), *HOOKS)
    assert manifest.missing(units, dict.fromkeys(DIGESTS, more)) == {
        u: {d: (Hookpoint(5),) for d in DIGESTS} for u in units
    }
    assert manifest.missing([*units, "another"], {"base": HOOKS[:1]}) == {"another": {"base": HOOKS[:1]}}


def test_a_layer_that_is_added_later_lies_in_a_second_file_and_the_first_stays(storage: Storage) -> None:
    (unit,) = make_harvest(storage, 1)
    before = {k: storage.read_bytes(k) for k in storage.list(KEY, suffix=".parquet")}
    work = Manifest.load(storage, KEY).missing([unit.name], dict.fromkeys(DIGESTS, (*HOOKS, Hookpoint(5))))
    write_unit(storage, unit, work[unit.name])
    assert (
        Manifest.load(storage, KEY).missing([unit.name], dict.fromkeys(DIGESTS, (*HOOKS, Hookpoint(5)))) == {}
    )
    after = storage.list(KEY, suffix=".parquet")
    assert len(after) == 2 * len(before)
    assert all(storage.read_bytes(k) == data for k, data in before.items())


def test_compacting_keeps_every_row_and_is_the_same_whatever_the_order_of_commits(
    storage: Storage, tmp_path: Path
) -> None:
    units = make_harvest(storage, 3)
    before = Manifest.load(storage, KEY)
    assert Manifest.compact(storage, KEY) == before == Manifest.load(storage, KEY)
    assert records(storage) == []
    compacted = storage.read_bytes(f"{KEY}/manifest.jsonl")
    lines = [ShardRow.from_json(json.loads(line)) for line in compacted.splitlines()]
    assert [row.identity for row in lines] == sorted(row.identity for row in lines)
    other = Storage(str(tmp_path / "other"))
    begin(other, units)
    for unit in reversed(units):
        write_unit(other, unit)
        Manifest.compact(other, KEY)
    assert other.read_bytes(f"{KEY}/manifest.jsonl") == compacted


def test_a_crash_between_compaction_and_the_removal_of_records_loses_and_doubles_nothing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_harvest(storage, 3)
    before = Manifest.load(storage, KEY)
    removed = []

    def crash(storage: Storage, name: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(name)
        storage.local(name).unlink()

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete_file", crash)
        with pytest.raises(KeyboardInterrupt):
            Manifest.compact(storage, KEY)
    assert len(records(storage)) == 2
    assert Manifest.load(storage, KEY) == before
    assert Manifest.compact(storage, KEY) == before
    assert records(storage) == []


def test_a_harvest_that_did_not_change_is_read_once_and_one_that_did_anew(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_harvest(storage, 3)
    Manifest.compact(storage, KEY)
    reads = []
    load = Manifest.load
    monkeypatch.setattr(Manifest, "load", lambda *of: (reads.append(of), load(*of))[1])
    first, again = open_harvest(storage, KEY), open_harvest(storage, KEY)
    assert len(reads) == 1 and again.manifest is first.manifest and again.all_units is first.all_units
    unit = make_unit(7)
    write_unit(storage, unit, dict.fromkeys(DIGESTS, HOOKS))
    assert len(open_harvest(storage, KEY).manifest.rows) == len(first.manifest.rows) + len(DIGESTS)
    Manifest.compact(storage, KEY)
    compacted = open_harvest(storage, KEY).manifest
    assert len(compacted.rows) == len(first.manifest.rows) + len(DIGESTS)
    assert open_harvest(Storage(storage.root), KEY).manifest is compacted, "another handle of the same root"


def test_a_record_committed_during_compaction_stays(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [make_unit(index) for index in range(3)]
    begin(storage, units)
    write_unit(storage, units[0])
    write = manifest_module._write_compacted

    def write_late(storage: Storage, key: str, rows: tuple[ShardRow, ...]) -> None:
        write_unit(storage, units[1])
        write(storage, key, rows)

    monkeypatch.setattr(manifest_module, "_write_compacted", write_late)
    Manifest.compact(storage, KEY)
    assert len(Manifest.load(storage, KEY).rows) == 2 * len(DIGESTS)


def test_a_record_stays_when_another_driver_overwrites_the_manifest(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = make_harvest(storage, 2)
    write = manifest_module._write_compacted

    def overwritten(storage: Storage, key: str, rows: tuple[ShardRow, ...]) -> None:
        write(storage, key, rows)
        write(storage, key, [row for row in rows if row.unit == units[0].name])

    monkeypatch.setattr(manifest_module, "_write_compacted", overwritten)
    Manifest.compact(storage, KEY)
    assert Manifest.load(storage, KEY).missing([u.name for u in units], dict.fromkeys(DIGESTS, HOOKS)) == {}


def test_compacting_while_others_commit_and_load_never_hides_a_row(storage: Storage) -> None:
    units = [make_unit(index) for index in range(20)]
    begin(storage, units)
    committed: list[str] = []

    def commit() -> None:
        for unit in units:
            write_unit(storage, unit, {"base": HOOKS[:1]})
            committed.append(unit.name)

    def compact() -> None:
        while len(committed) < len(units) and not committing.done():
            Manifest.compact(storage, KEY)

    with ThreadPoolExecutor(2) as pool:
        committing = pool.submit(commit)
        compacting = pool.submit(compact)
        while not committing.done():
            sure = list(committed)
            assert Manifest.load(storage, KEY).missing(sure, {"base": HOOKS[:1]}) == {}
        committing.result()
        compacting.result()
    assert len(Manifest.compact(storage, KEY).rows) == len(units)


def test_a_finished_manifest_is_not_written_again(storage: Storage) -> None:
    make_harvest(storage, 1)
    Manifest.compact(storage, KEY)
    path = storage.local(f"{KEY}/manifest.jsonl")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    Manifest.compact(storage, KEY)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_half_a_record_costs_its_unit_only(storage: Storage) -> None:
    units = make_harvest(storage, 3)
    broken = next(r for r in records(storage) if units[1].name in r)
    storage.local(broken).write_bytes(storage.read_bytes(broken)[:100])
    manifest = Manifest.load(storage, KEY)
    (message,) = manifest.damaged
    assert str(storage.local(broken)) in message
    assert "only this unit is redone" in message
    work = manifest.missing([u.name for u in units], dict.fromkeys(DIGESTS, HOOKS))
    assert list(work) == [units[1].name]
    write_unit(storage, units[1], work[units[1].name])
    assert len(Manifest.compact(storage, KEY).rows) == 3 * len(DIGESTS)
    assert Manifest.load(storage, KEY).damaged == ()


@pytest.mark.parametrize("content", [b"", b"[{}]", b'{"unit": 1}', b"[1]", b"\xff\xfe\x00", b"null"])
def test_whatever_stands_in_a_record_is_told_and_survived(storage: Storage, content: bytes) -> None:
    make_harvest(storage, 2)
    storage.local(records(storage)[0]).write_bytes(content)
    manifest = Manifest.load(storage, KEY)
    assert len(manifest.damaged) == 1
    assert len(manifest.rows) == len(DIGESTS)


def test_a_broken_line_of_the_manifest_costs_its_row_only(storage: Storage) -> None:
    units = make_harvest(storage, 2)
    Manifest.compact(storage, KEY)
    path = storage.local(f"{KEY}/manifest.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    manifest = Manifest.load(storage, KEY)
    assert f"{path} line {len(DIGESTS) * 2}" in manifest.damaged[0]
    work = manifest.missing([u.name for u in units], dict.fromkeys(DIGESTS, HOOKS))
    assert sum(len(todo) for todo in work.values()) == 1
    for unit in units:
        if unit.name in work:
            write_unit(storage, unit, work[unit.name])
    assert len(Manifest.compact(storage, KEY).rows) == 2 * len(DIGESTS)
    assert Manifest.load(storage, KEY).damaged == ()


def test_two_writers_of_the_same_units_leave_what_one_leaves(storage: Storage, tmp_path: Path) -> None:
    alone = Storage(str(tmp_path / "alone"))
    units = make_harvest(alone, 6)
    begin(storage, units)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda order: [write_unit(storage, u) for u in order], (units, units[::-1])))
    assert Manifest.compact(storage, KEY) == Manifest.compact(alone, KEY)
    assert not list(storage.local("").rglob(".tmp-*"))


def test_a_record_stays_when_the_manifest_holds_an_older_row_of_the_same_shard(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver's compaction may put the row back that a repair had dropped: its file is of other
    bytes."""
    (unit,) = make_harvest(storage, 1)
    write, now = manifest_module._write_compacted, Manifest.load(storage, KEY)

    def overwritten(storage: Storage, key: str, rows: tuple[ShardRow, ...]) -> None:
        write(storage, key, [replace(row, sha256="0" * 64) for row in rows])

    monkeypatch.setattr(manifest_module, "_write_compacted", overwritten)
    Manifest.compact(storage, KEY)
    assert Manifest.load(storage, KEY) == now


def test_the_spec_of_a_harvest_is_written_once(storage: Storage) -> None:
    write_harvest(storage, KEY, {"d_model": 24, "model": "a", "layers": (1, 2)})
    write_harvest(storage, KEY, {"d_model": 24, "model": "a", "layers": (1, 2)})
    with pytest.raises(ShardError, match=r"harvest.json is of another harvest \(it differs in \['model'\]\)"):
        write_harvest(storage, KEY, {"d_model": 24, "model": "b", "layers": (1, 2)})


def test_facts_are_added_to_a_source_by_writing_it_again(storage: Storage) -> None:
    make_harvest(storage, 1)
    r4 = next(s for s in read_sources(storage, KEY) if s.name == "r4")
    r4.facts["snr"] = {"blocks.2.hook_resid_post": 1333.0}
    write_source(storage, KEY, r4)
    assert [s.name for s in read_sources(storage, KEY)] == ["base", "r4", "r16", "random"]
    assert read_sources(storage, KEY)[1] == r4


def test_units_and_sources_that_are_no_such_thing_are_told(storage: Storage) -> None:
    make_harvest(storage, 1)
    storage.write_json(f"{KEY}/units.json", [{"name": "x"}])
    with pytest.raises(ShardError, match="units.json is no list of units"):
        read_units(storage, KEY)
    storage.write_json(f"{KEY}/sources/base/source.json", {"colour": "x"})
    with pytest.raises(ShardError, match="source.json is no source"):
        read_sources(storage, KEY)
