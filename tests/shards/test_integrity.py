import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.integrity import find_damage, repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.records import ShardRow
from deltasae_ray.storage import Storage
from tests.shards.made import HOOKS, KEY, SOURCES, make_harvest, write_unit

DIGESTS = [source.digest for source in SOURCES]
R4 = "04" * 8


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def a_shard(storage: Storage, source: str = R4) -> tuple[ShardRow, Path]:
    row = next(r for r in Manifest.load(storage, KEY).rows if r.source == source and r.split == "fit")
    return row, storage.local(f"{KEY}/{row.file}")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path, in_vectors_of: Hookpoint | None = None) -> None:
    """One bit in the middle, or in the middle of a hookpoint's vectors."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    if in_vectors_of:
        group = pq.read_metadata(path).row_group(0)
        (column,) = [
            c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == str(in_vectors_of)
        ]
        at = column.data_page_offset + column.total_compressed_size // 2
    data[at] ^= 1
    path.write_bytes(data)


def swap_footer(path: Path) -> None:
    """As long as before, but no Parquet."""
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))


DAMAGE = {
    "has .* bytes and not": truncate,
    "cannot be read as a shard": swap_footer,
    "is missing though": Path.unlink,
}


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_shard_is_named_with_its_remedy_and_the_rest_stays_usable(
    storage: Storage, message: str, compacted: bool
) -> None:
    make_harvest(storage)
    if compacted:
        Manifest.compact(storage, KEY)
    row, path = a_shard(storage)
    DAMAGE[message](path)
    shards = open_shards(storage.root)
    with pytest.raises(
        ShardError, match=f"{path} {message}.*un the harvest again: only this unit is redone"
    ) as caught:
        shards.read(2, "r4")
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ShardError)
    for source in ("base", "r16", "random"):
        shards.read(2, source)
    shards.read(10, "r4", "eval")
    shards.tokens()


def test_a_flipped_byte_is_found_by_every_read_of_its_column_and_by_hash_on_demand(storage: Storage) -> None:
    make_harvest(storage)
    row, path = a_shard(storage)
    flip(path, in_vectors_of=HOOKS[0])
    shards = open_shards(storage.root)
    with pytest.raises(ShardError, match=f"{path} cannot be read as a shard .*CRC.*only this unit is redone"):
        shards.read(2, "r4")
    shards.read(10, "r4")
    shards.verify(hashes=False)
    with pytest.raises(
        ShardError, match=f"1 of 24 shards or records are damaged: {path} was altered, its sha256"
    ):
        shards.verify()
    with pytest.raises(ShardError, match="was altered"):
        shards.read(2, "r4", verify=True)
    shards.read(2, "r16", verify=True)
    assert list(find_damage(storage, KEY, shards.manifest.rows, hashes=True)) == [row]


def test_verify_tells_of_every_damaged_file_and_record(storage: Storage) -> None:
    make_harvest(storage)
    _, first = a_shard(storage, "base")
    _, second = a_shard(storage)
    truncate(first)
    second.unlink()
    rows = storage.list(f"{KEY}/rows")
    record = storage.local(next(r for r in rows if first.name[:16] not in r))
    record.write_bytes(b"[")
    with pytest.raises(ShardError, match="3 of 20 shards or records are damaged") as caught:
        open_shards(storage.root).verify(hashes=False)
    assert all(str(path) in str(caught.value) for path in (first, second, record))


def test_a_shard_under_anothers_name_is_refused_without_hashing(storage: Storage) -> None:
    make_harvest(storage)
    row, path = a_shard(storage)
    other = next(r for r in Manifest.load(storage, KEY).rows if (r.unit, r.source) == (row.unit, "16" * 8))
    path.write_bytes(storage.read_bytes(f"{KEY}/{other.file}"))
    with pytest.raises(ShardError, match="is another shard than its record says"):
        open_shards(storage.root).read(2, "r4")


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_repair_drops_what_is_damaged_so_that_resuming_redoes_just_that(
    storage: Storage, damage: Callable[[Path], None], compacted: bool
) -> None:
    units = make_harvest(storage)
    undisturbed = Manifest.load(storage, KEY)
    if compacted:
        Manifest.compact(storage, KEY)
    row, path = a_shard(storage)
    damage(path)
    assert list(repair(storage, KEY, hashes=damage is flip)) == [row]
    assert repair(storage, KEY) == {}
    work = Manifest.load(storage, KEY).missing([u.name for u in units], dict.fromkeys(DIGESTS, HOOKS))
    assert work == {row.unit: {R4: HOOKS}}
    (unit,) = [u for u in units if u.name == row.unit]
    write_unit(storage, unit, work[unit.name])
    assert Manifest.compact(storage, KEY) == undisturbed
    open_shards(storage.root).verify()


def test_a_sound_harvest_needs_no_repair(storage: Storage) -> None:
    make_harvest(storage)
    before = {k: storage.read_bytes(k) for k in storage.list("")}
    assert repair(storage, KEY, hashes=True) == {}
    assert {k: storage.read_bytes(k) for k in storage.list("")} == before


@contextmanager
def no_file_can_be_opened() -> Iterator[None]:
    """As on a machine that is short of something for a moment."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 10, before[1]))
        with suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in taken:
            os.close(number)


def test_what_cannot_be_read_now_is_not_called_damaged(storage: Storage) -> None:
    make_harvest(storage)
    shards = open_shards(storage.root)
    with (
        no_file_can_be_opened(),
        pytest.raises(StorageError, match="cannot be read now .*it may well be sound: run again"),
    ):
        shards.read(2, "r4")
    shards.read(2, "r4")


def test_repair_deletes_nothing_while_it_cannot_tell(storage: Storage) -> None:
    make_harvest(storage)
    (_, unreadable), (_, truncated) = a_shard(storage), a_shard(storage, "base")
    sound = unreadable.read_bytes()
    unreadable.unlink()
    unreadable.mkdir()  # opening it fails, and not for want of the file
    truncate(truncated)
    before = Manifest.load(storage, KEY)
    for hashes in (False, True):
        with pytest.raises(StorageError, match=f"{unreadable} cannot be read now"):
            repair(storage, KEY, hashes=hashes)
    assert Manifest.load(storage, KEY) == before and truncated.exists()
    unreadable.rmdir()
    unreadable.write_bytes(sound)
    assert [r.source for r in repair(storage, KEY, hashes=True)] == ["base"]


def test_a_record_that_contradicts_the_study_is_an_error_not_an_array(storage: Storage) -> None:
    make_harvest(storage, 2)
    spec = storage.read_json(f"{KEY}/harvest.json")
    storage.write_json(f"{KEY}/harvest.json", {**spec, "d_model": 25})
    with pytest.raises(ShardError, match="x 24 numbers by the manifest"):
        open_shards(storage.root).read(2)


def test_no_single_flipped_byte_anywhere_in_a_shard_escapes_the_hash_or_changes_what_is_read_without(
    storage: Storage,
) -> None:
    make_harvest(storage, 1)
    row, path = a_shard(storage)
    sound = path.read_bytes()
    shards = open_shards(storage.root)
    expected = shards.read(2, "r4")
    for index in np.linspace(0, len(sound) - 1, 60).astype(int).tolist() + list(
        range(len(sound) - 40, len(sound))
    ):
        data = bytearray(sound)
        data[index] ^= 0x55
        path.write_bytes(data)
        with pytest.raises(ShardError):
            shards.read(2, "r4", verify=True)
        try:
            assert np.array_equal(shards.read(2, "r4"), expected), f"byte {index} of {len(sound)}"
        except ShardError as e:
            assert str(path) in str(e)


def test_a_shard_of_an_earlier_version_without_checksums_is_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        write = pq.write_table
        earlier.setattr(pq, "write_table", lambda *a, **k: write(*a, **{**k, "write_page_checksum": False}))
        make_harvest(storage, 3)
    old = open_shards(storage.root).read(2, "r4", verify=True)
    sizes = [row.bytes for row in Manifest.load(storage, KEY).rows]
    make_harvest(storage, 3)
    assert np.array_equal(open_shards(storage.root).read(2, "r4"), old)
    assert [row.bytes for row in Manifest.load(storage, KEY).rows] != sizes
