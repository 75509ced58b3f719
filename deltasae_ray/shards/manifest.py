"""Which shards count. A shard does when its row stands in a commit record or in the compacted manifest; both
are put atomically."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.columns import SCHEMA, from_parquet, merged, pc, to_parquet, to_rows, to_table
from deltasae_ray.shards.records import ShardRow
from deltasae_ray.storage import Storage, digest

REDO = "delete it and run the harvest again: only this unit is redone"
_THREADS = 16  # records are tiny: on an object store reading them is all latency
_BATCH = 4096
"""Records that are Python objects at once; the rest are columns."""


def manifest_file(key: str) -> str:
    """Where the compacted manifest of a harvest lies, below the root."""
    return f"{key}/manifest.parquet"


@dataclass(frozen=True, eq=False)
class Manifest:
    """A snapshot of the shards that count."""

    table: pa.Table
    """A row for each, of `columns.SCHEMA`, sorted by source, unit and hookpoints; none twice."""
    damaged: tuple[str, ...] = ()
    """What is wrong with each record that could not be read, naming its file. Their units count as
    missing."""
    unreadable: bool = False
    """Whether the compacted manifest itself is damaged; `repair` makes it anew from the shards."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Manifest) and self.table.equals(other.table) and self.damaged == other.damaged
        )

    def __hash__(self) -> int:
        return id(self)

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def rows(self) -> tuple[ShardRow, ...]:
        """All rows as objects: for small harvests."""
        return to_rows(self.table)

    def select(
        self, sources: Collection[str] | None = None, units: Collection[str] | None = None
    ) -> pa.Table:
        """The part of the table that is of these sources (by digest) and units; None: of all."""
        rows = self.table
        if sources is not None:
            rows = rows.filter(pc.is_in(rows["source"].cast(pa.string()), pa.array(sources, pa.string())))
        if units is not None:
            rows = rows.filter(pc.is_in(rows["unit"], pa.array(units, pa.string())))
        return rows

    @classmethod
    def load(cls, storage: Storage, key: str) -> "Manifest":
        """The union of commit records and manifest.parquet."""
        return cls._load(storage, key)[0]

    @classmethod
    def _load(cls, storage: Storage, key: str) -> tuple["Manifest", list[str], list[str]]:
        """The manifest with the names of its records, sound and damaged."""
        tables, sound, damaged = [], [], {}
        for records, wrong in _records(storage, key):
            tables.append(to_table(row for rows in records.values() for row in rows))
            sound += records
            damaged |= wrong
        # last, so that a record that was compacted away in the meantime is found here
        compacted, broken = read_compacted(storage, key)
        # a record is newer than the manifest, and replaces its row
        manifest = cls(
            merged(compacted, *tables), (*filter(None, [broken]), *damaged.values()), broken is not None
        )
        return manifest, sound, list(damaged)

    @classmethod
    def compact(cls, storage: Storage, key: str) -> "Manifest":
        """Gathers all records in manifest.parquet and removes them. For the driver, at the end; a crash at
        any point loses nothing.

        Raises:
            ShardError: the manifest is damaged, and would be overwritten.
        """
        manifest, records, damaged = cls._load(storage, key)
        if manifest.unreadable:
            raise ShardError(manifest.damaged[0])
        if not records and not damaged:
            return manifest
        write_compacted(storage, key, manifest.table)
        # read back, so that no record goes whose rows another driver's compaction has just overwritten, be it
        # with older ones of that name
        if read_compacted(storage, key)[0].equals(manifest.table):
            storage.delete_files([*records, *damaged])
        return cls(manifest.table)

    def missing(
        self, units: Iterable[str], wanted: Mapping[str, Sequence[Hookpoint]]
    ) -> dict[str, dict[str, tuple[Hookpoint, ...]]]:
        """Work that is left: unit → source digest → hookpoints, without units and sources that are complete.

        Args:
            wanted: source digest → its hookpoints.
        """
        units = list(units)
        places = pa.array(units, pa.string())
        work: dict[str, dict[str, tuple[Hookpoint, ...]]] = {}
        for source, hookpoints in wanted.items():
            hooks = sorted(hookpoints)
            done = _done(self.select([source]), places, [str(h) for h in hooks])
            for unit in np.flatnonzero(~done.all(axis=1)):
                lacks = tuple(h for h, there in zip(hooks, done[unit], strict=True) if not there)
                work.setdefault(units[unit], {})[source] = lacks
        return {unit: work[unit] for unit in units if unit in work}


def _done(held: pa.Table, units: pa.Array, hooks: Sequence[str]) -> np.ndarray:
    """Which units (rows) of one source have which hookpoints (columns): bool [unit, hookpoint]."""
    done = np.zeros((len(units), len(hooks)), bool)
    where = pc.index_in(held["unit"], units).combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
    groups = held["hookpoints"].combine_chunks()
    codes = groups.indices.to_numpy(zero_copy_only=False)
    for code, names in enumerate(groups.dictionary.to_pylist()):
        there = where[(codes == code) & (where >= 0)]
        for column in [hooks.index(name) for name in names.split(",") if name in hooks]:
            done[there, column] = True
    return done


def commit_unit(storage: Storage, key: str, rows: Sequence[ShardRow]) -> str:
    """Makes shards of one unit count, in one atomic put after their files. Returns the record's key.

    The same work has the same record, so doing a unit twice overwrites it.
    """
    (unit,) = {row.unit for row in rows}
    ordered = sorted(rows, key=lambda row: row.identity)
    name = _record(key, unit, [row.identity for row in ordered])
    storage.write_json(name, [row.to_json() for row in ordered])
    return name


def _record(key: str, unit: str, identities: Sequence[tuple]) -> str:
    return f"{key}/rows/{unit}-{digest(sorted(identities))}.json"


def is_committed(storage: Storage, key: str, unit: str, work: Mapping[str, Sequence[str]]) -> bool:
    """Whether exactly this work (source digest → hookpoints in their order) stands in a record: committed,
    and not compacted since."""
    identities = [(unit, source, tuple(hookpoints)) for source, hookpoints in work.items()]
    if not storage.exists(name := _record(key, unit, identities)):
        return False
    try:
        return {row.identity for row in read_commit(storage, name)} == set(
            identities
        )  # a repair may have dropped some of them
    except ShardError:
        return False  # it is written again


def drop_rows(storage: Storage, key: str, rows: Collection[ShardRow]) -> None:
    """Makes shards count no longer, and deletes their files. A crash half-way leaves rows to be dropped
    again."""
    gone = {row.identity for row in rows}
    for records, _ in _records(storage, key):
        for name, group in records.items():
            kept = [row for row in group if row.identity not in gone]
            if kept and len(kept) < len(group):
                storage.write_json(name, [row.to_json() for row in kept])
            elif not kept:
                storage.delete_file(name)
    compacted, _ = read_compacted(storage, key)
    keys = to_table(rows).select(["source", "unit", "hookpoints"])
    kept = _without(compacted, keys)
    if len(kept) < len(compacted):
        write_compacted(storage, key, kept)
    storage.delete_files(f"{key}/{row.file}" for row in rows)


def _without(table: pa.Table, keys: pa.Table) -> pa.Table:
    """The rows of a table that are of none of these shards."""
    near = pc.is_in(table["unit"], keys["unit"].combine_chunks())
    gone = {tuple(row.values()) for row in keys.to_pylist()}
    identity = table.filter(near).select(keys.column_names).to_pylist()
    stays = pa.array([tuple(row.values()) not in gone for row in identity], pa.bool_())
    return merged(table.filter(pc.invert(near)), table.filter(near).filter(stays))


def read_commit(storage: Storage, name: str) -> list[ShardRow]:
    """The rows of one record; none if it is gone.

    Raises:
        ShardError: it is no record, for example half of one.
    """
    try:
        return [ShardRow.from_json(value) for value in json.loads(storage.read_bytes(name))]
    except StorageError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            return []
        raise
    except (ValueError, TypeError, RecursionError) as e:
        raise ShardError(f"{storage.path(name)} is no commit record ({e}): {REDO}") from e


def _records(storage: Storage, key: str) -> Iterator[tuple[dict[str, list[ShardRow]], dict[str, str]]]:
    """Rows by record, and what is wrong by damaged record, some thousands at a time."""

    def attempt(name: str) -> list[ShardRow] | ShardError:
        try:
            return read_commit(storage, name)
        except ShardError as e:
            return e

    names = storage.list(f"{key}/rows", suffix=".json")
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            results = dict(zip(batch, pool.map(attempt, batch), strict=True))
            records = {name: rows for name, rows in results.items() if not isinstance(rows, ShardError)}
            yield records, {name: str(e) for name, e in results.items() if isinstance(e, ShardError)}


def read_compacted(storage: Storage, key: str) -> tuple[pa.Table, str | None]:
    """The rows of manifest.parquet; none, and what is wrong with it, where it is damaged."""
    name = manifest_file(key)
    if not storage.exists(name):
        return SCHEMA.empty_table(), None
    try:
        return from_parquet(storage.read_bytes(name)), None
    except ValueError as e:
        return SCHEMA.empty_table(), (
            f"{storage.path(name)} is no manifest ({e}): run the harvest again: it is made anew from the"
            " shards, and none is redone"
        )


def write_compacted(storage: Storage, key: str, table: pa.Table) -> None:
    """Replaces manifest.parquet, atomically."""
    storage.write_bytes(manifest_file(key), memoryview(to_parquet(table)))
