"""Shards that are missing, truncated or altered: found by size or by hash, and dropped so that resuming
redoes just them."""

import hashlib
import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.shards.columns import merged, to_rows, to_table
from deltasae_ray.shards.format import FORMAT, described
from deltasae_ray.shards.manifest import REDO, Manifest, drop_rows, write_compacted
from deltasae_ray.shards.records import ShardRow
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)

THREADS = 8  # files read at once


@contextmanager
def opened(storage: Storage, key: str, row: ShardRow, *, verify: bool = False) -> Iterator[pq.ParquetFile]:
    """A shard, open for reading; its size is always held against its row, pages that are read against their
    checksums (which shards of earlier versions have not), the file's sha256 where `verify` is set.

    Raises:
        ShardError: missing, truncated or altered, also where that shows only while it is read; names the file
            and the remedy.
        StorageError: it cannot be read now, and nothing shows that it is damaged.
    """
    path = storage.path(f"{key}/{row.file}")
    try:
        with storage.fs.open_input_file(path) as f:
            if f.size() != row.bytes:
                raise ShardError(
                    f"{path} has {f.size()} bytes and not {row.bytes}, it was truncated or altered: {REDO}"
                )
            source = f
            if verify:
                source = f.read_buffer()
                _check_hash(path, row, source)
            # column chunks lie together: on an object store they come in one request
            shard = pq.ParquetFile(source, pre_buffer=not storage.is_local, page_checksum_verification=True)
            facts = shard.schema_arrow.metadata or {}
            marks = [facts.get(name, b"").decode() for name in (b"format", b"unit", b"source", b"d_model")]
            if (
                marks != [FORMAT.decode(), row.unit, row.source, str(row.d_model)]
                or shard.metadata.num_rows != row.rows
            ):
                raise ShardError(f"{path} is another shard than its record says: {REDO}")
            yield shard
    except (ShardError, StorageError):
        raise
    except FileNotFoundError as e:
        raise ShardError(
            f"{path} is missing though the manifest lists it. Run the harvest again: only this unit is redone"
        ) from e
    except (
        OSError,
        MemoryError,
    ) as e:  # of a store that does not answer, and of Arrow for broken pages: its bytes tell which
        raise _diagnosed(storage, path, row, e) from e
    except (pa.ArrowException, ValueError, LookupError, TypeError, ArithmeticError) as e:
        raise ShardError(f"{path} cannot be read as a shard ({e}): {REDO}") from e


def _diagnosed(
    storage: Storage, path: str, row: ShardRow, error: OSError | MemoryError
) -> ShardError | StorageError:
    """What an error while reading means, told by the file's bytes as they are read again: nothing is called
    damaged that is not."""
    try:
        with storage.fs.open_input_file(path) as f:
            digest = hashlib.sha256(f.read_buffer()).hexdigest()
    except OSError as e:
        return StorageError(
            f"{path} cannot be read now ({e}); it may well be sound: run again once the storage answers"
        )
    if digest != row.sha256:
        return ShardError(f"{path} cannot be read as a shard ({error}): {REDO}")
    return StorageError(
        f"{path} could not be read ({error}), but its bytes are sound: run the same command again"
    )


def _check_hash(path: str, row: ShardRow, data: pa.Buffer) -> None:
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise ShardError(f"{path} was altered, its sha256 is not the one in its record: {REDO}")


def find_damage(
    storage: Storage, key: str, rows: Collection[ShardRow], *, hashes: bool = False
) -> dict[ShardRow, str]:
    """What is wrong, by damaged shard. Sizes come from one listing a source; `hashes` reads every byte.

    Raises:
        StorageError: a shard cannot be read now, so that nobody knows.
    """
    sizes: dict[str, int] = {}
    for source in {row.source for row in rows}:
        sizes |= storage.sizes(f"{key}/sources/{source}")

    def problem(row: ShardRow) -> str | None:
        if not hashes and sizes.get(f"{key}/{row.file}") == row.bytes:
            return None
        try:
            with opened(storage, key, row, verify=hashes):
                return None
        except ShardError as e:
            return str(e)

    with ThreadPoolExecutor(THREADS) as pool:
        return {
            row: what for row, what in zip(rows, pool.map(problem, rows), strict=True) if what is not None
        }


def repair(storage: Storage, key: str, *, hashes: bool = False) -> dict[ShardRow, str]:
    """Drops every damaged shard, so that `Manifest.missing` lists it again. Returns what was wrong, by
    dropped shard.

    A harvest calls it before it asks what is missing: without `hashes` it costs a listing for each source. A
    damaged manifest is made anew from the shards first.

    Raises:
        StorageError: a shard cannot be read now; nothing is dropped then.
    """
    manifest, damage = Manifest.load(storage, key), {}
    if manifest.unreadable:
        log.warning("%s", manifest.damaged[0])
        write_compacted(storage, key, _from_shards(storage, key))
        manifest = Manifest.load(storage, key)
    for source in manifest.table["source"].unique().to_pylist():  # one at a time: rows as objects are large
        damage |= find_damage(storage, key, to_rows(manifest.select([source])), hashes=hashes)
    if damage:
        drop_rows(storage, key, tuple(damage))
    return damage


def _from_shards(storage: Storage, key: str) -> pa.Table:
    """A table of all sound shards that lie there, by what each says of itself; reads every byte of them."""

    def row_of(name: str) -> ShardRow | None:
        data = pa.py_buffer(storage.read_bytes(name))
        try:
            facts = described(data) | {"bytes": data.size, "sha256": hashlib.sha256(data).hexdigest()}
            return ShardRow.from_json(facts | {"file": name.removeprefix(f"{key}/")})
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError):
            return None  # damaged: it does not count, and its unit is done again

    names = storage.list(f"{key}/sources", suffix=".parquet")
    with ThreadPoolExecutor(THREADS) as pool:
        return merged(to_table(row for row in pool.map(row_of, names) if row is not None))
