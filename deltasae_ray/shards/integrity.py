"""Shards that are missing, truncated or altered: found by size or by hash, and dropped so that resuming redoes just them."""

import hashlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from deltasae_ray.errors import ShardError
from deltasae_ray.shards.format import FORMAT
from deltasae_ray.shards.manifest import REDO, Manifest, drop_rows
from deltasae_ray.shards.records import ShardRow
from deltasae_ray.storage import Storage

THREADS = 8  # files read at once


@contextmanager
def opened(storage: Storage, key: str, row: ShardRow, *, verify: bool = False) -> Iterator[pq.ParquetFile]:
    """A shard, open for reading; its size is always held against its row, its sha256 where `verify` is set.

    Raises:
        ShardError: missing, truncated or altered, also where that shows only while it is read; names the file and the remedy.
    """
    path = storage.path(f"{key}/{row.file}")
    try:
        with storage.fs.open_input_file(path) as f:
            if f.size() != row.bytes:
                raise ShardError(f"{path} has {f.size()} bytes and not {row.bytes}, it was truncated or altered: {REDO}")
            source = f
            if verify:
                source = f.read_buffer()
                _check_hash(path, row, source)
            # column chunks lie together: on an object store they come in one request
            shard = pq.ParquetFile(source, pre_buffer=not storage.is_local)
            facts = shard.schema_arrow.metadata or {}
            found = [facts.get(name, b"").decode() for name in (b"format", b"unit", b"source", b"d_model")]
            if found != [FORMAT.decode(), row.unit, row.source, str(row.d_model)] or shard.metadata.num_rows != row.rows:
                raise ShardError(f"{path} is another shard than its record says: {REDO}")
            yield shard
    except ShardError:
        raise
    except FileNotFoundError as e:
        raise ShardError(f"{path} is missing though the manifest lists it. Run the harvest again: only this unit is redone") from e
    except (OSError, pa.ArrowException, ValueError, KeyError) as e:
        raise ShardError(f"{path} cannot be read as a shard ({e}): {REDO}") from e


def _check_hash(path: str, row: ShardRow, data: pa.Buffer) -> None:
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise ShardError(f"{path} was altered, its sha256 is not the one in its record: {REDO}")


def find_damage(storage: Storage, key: str, rows: Collection[ShardRow], *, hashes: bool = False) -> dict[ShardRow, str]:
    """What is wrong, by damaged shard. Sizes come from one listing; `hashes` reads every byte."""
    selector = pafs.FileSelector(storage.path(f"{key}/sources"), recursive=True, allow_not_found=True)
    sizes = {info.path: info.size for info in storage.fs.get_file_info(selector) if info.type == pafs.FileType.File}

    def problem(row: ShardRow) -> str | None:
        path = storage.path(f"{key}/{row.file}")
        if not hashes and sizes.get(path) == row.bytes:
            return None
        try:
            with opened(storage, key, row, verify=hashes):
                return None
        except ShardError as e:
            return str(e)

    with ThreadPoolExecutor(THREADS) as pool:
        return {row: what for row, what in zip(rows, pool.map(problem, rows), strict=True) if what is not None}


def repair(storage: Storage, key: str, *, hashes: bool = False) -> dict[ShardRow, str]:
    """Drops every damaged shard, so that `Manifest.missing` lists it again. Returns what was wrong, by dropped shard.

    A harvest calls it before it asks what is missing: without `hashes` it costs one listing.
    """
    damage = find_damage(storage, key, Manifest.load(storage, key).rows, hashes=hashes)
    if damage:
        drop_rows(storage, key, tuple(damage))
    return damage


def forget(storage: Storage, key: str, unit: str, source: str | None = None) -> tuple[ShardRow, ...]:
    """Drops the shards of a unit, of all sources or of one (by digest), whatever state they are in. Returns their rows.

    Raises:
        ShardError: nothing of the unit counts.
    """
    rows = tuple(r for r in Manifest.load(storage, key).rows if r.unit == unit and source in (None, r.source))
    if not rows:
        of = f"unit {unit}, source {source}" if source else f"unit {unit}"
        raise ShardError(f"{storage.path(key)} lists no shard of {of}: nothing to forget")
    drop_rows(storage, key, rows)
    return rows
