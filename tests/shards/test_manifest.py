from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltasae_ray.errors import ShardError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards import manifest as manifest_module
from deltasae_ray.shards.columns import from_parquet, merged, to_parquet, to_rows, to_table
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest, commit_unit
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.records import read_sources, read_units, write_harvest, write_source
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
    before = {k: storage.read_bytes(k) for k in storage.list(f"{KEY}/sources", suffix=".parquet")}
    work = Manifest.load(storage, KEY).missing([unit.name], dict.fromkeys(DIGESTS, (*HOOKS, Hookpoint(5))))
    write_unit(storage, unit, work[unit.name])
    assert (
        Manifest.load(storage, KEY).missing([unit.name], dict.fromkeys(DIGESTS, (*HOOKS, Hookpoint(5)))) == {}
    )
    after = storage.list(f"{KEY}/sources", suffix=".parquet")
    assert len(after) == 2 * len(before)
    assert all(storage.read_bytes(k) == data for k, data in before.items())


def test_compacting_keeps_every_row_and_is_the_same_whatever_the_order_of_commits(
    storage: Storage, tmp_path: Path
) -> None:
    units = make_harvest(storage, 3)
    before = Manifest.load(storage, KEY)
    assert Manifest.compact(storage, KEY) == before == Manifest.load(storage, KEY)
    assert records(storage) == []
    compacted = storage.read_bytes(f"{KEY}/manifest.parquet")
    rows = to_rows(from_parquet(compacted))
    order = [(row.source, row.unit, row.hookpoints) for row in rows]
    assert order == sorted(order) and {r.identity for r in rows} == {r.identity for r in before.rows}
    other = Storage(str(tmp_path / "other"))
    begin(other, units)
    for unit in reversed(units):
        write_unit(other, unit)
        Manifest.compact(other, KEY)
    assert other.read_bytes(f"{KEY}/manifest.parquet") == compacted


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
    write = manifest_module.write_compacted

    def write_late(storage: Storage, key: str, table: pa.Table) -> None:
        write_unit(storage, units[1])
        write(storage, key, table)

    monkeypatch.setattr(manifest_module, "write_compacted", write_late)
    Manifest.compact(storage, KEY)
    assert len(Manifest.load(storage, KEY).rows) == 2 * len(DIGESTS)


def test_a_record_stays_when_another_driver_overwrites_the_manifest(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = make_harvest(storage, 2)
    write = manifest_module.write_compacted

    def overwritten(storage: Storage, key: str, table: pa.Table) -> None:
        write(storage, key, table)
        write(storage, key, Manifest(table).select(units=[units[0].name]))

    monkeypatch.setattr(manifest_module, "write_compacted", overwritten)
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
    path = storage.local(f"{KEY}/manifest.parquet")
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


DAMAGE = {"half": lambda data: data[: len(data) // 2], "none": lambda _: b"", "text": lambda _: b"[]"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_made_anew_from_the_shards_and_none_is_redone(
    storage: Storage, damage: str
) -> None:
    units = make_harvest(storage, 2)
    whole = Manifest.compact(storage, KEY)
    write_unit(storage, late := make_unit(7))  # in a record of its own
    path = storage.local(f"{KEY}/manifest.parquet")
    path.write_bytes(broken := DAMAGE[damage](path.read_bytes()))
    manifest = Manifest.load(storage, KEY)
    assert str(path) in manifest.damaged[0] and "none is redone" in manifest.damaged[0]
    assert {row.unit for row in manifest.rows} == {late.name}
    with pytest.raises(ShardError, match="is no manifest"):
        Manifest.compact(storage, KEY)
    assert path.read_bytes() == broken, "nothing is overwritten that could not be read"
    lost = storage.local(f"{KEY}/{whole.rows[0].file}")
    lost.write_bytes(lost.read_bytes()[:-9])
    assert repair(storage, KEY) == {}
    work = Manifest.load(storage, KEY).missing([u.name for u in units], dict.fromkeys(DIGESTS, HOOKS))
    assert work == {whole.rows[0].unit: {whole.rows[0].source: HOOKS}}, "of the shards one is damaged"
    write_unit(storage, next(u for u in units if u.name in work), work[whole.rows[0].unit])
    assert Manifest.compact(storage, KEY).select(units=[u.name for u in units]).equals(whole.table)


def test_no_flipped_byte_of_a_manifest_changes_a_row_silently(storage: Storage) -> None:
    make_harvest(storage, 4)
    table = Manifest.compact(storage, KEY).table
    data = storage.read_bytes(f"{KEY}/manifest.parquet")
    found = 0
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x55
        try:
            assert from_parquet(bytes(flipped)).equals(table), f"byte {place} of {len(data)}"
        except ValueError:
            found += 1
    assert found > len(data) / 2


@pytest.mark.parametrize("name", ["../victim", "a/b", "..", "", "a" * 300])
@pytest.mark.parametrize("column", ["unit", "source", "hookpoints"])
def test_a_manifest_with_a_name_that_leads_elsewhere_is_none(
    storage: Storage, column: str, name: str
) -> None:
    make_harvest(storage, 1)
    table = Manifest.compact(storage, KEY).table
    place = table.column_names.index(column)
    values = [name, *table[column].to_pylist()[1:]]
    array = pa.array(values) if column == "unit" else pa.array(values).dictionary_encode()
    with pytest.raises(ValueError, match="name|Hookpoint|hook"):
        from_parquet(to_parquet(table.set_column(place, table.schema.field(column), array)).to_pybytes())


def test_columns_of_other_types_are_refused_before_a_value_is_made(storage: Storage) -> None:
    class Trap(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.string(), "a.trap")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Trap":
            return cls()

    make_harvest(storage, 1)
    table = Manifest.compact(storage, KEY).table
    trapped = pa.ExtensionArray.from_storage(Trap(), table["unit"].combine_chunks().cast(pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(1, "unit", trapped), sink)
    with pytest.raises(ValueError, match="columns are not those"):
        from_parquet(sink.getvalue().to_pybytes())


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
    write, now = manifest_module.write_compacted, Manifest.load(storage, KEY)

    def overwritten(storage: Storage, key: str, table: pa.Table) -> None:
        write(storage, key, merged(to_table(replace(row, sha256="0" * 64) for row in to_rows(table))))

    monkeypatch.setattr(manifest_module, "write_compacted", overwritten)
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
