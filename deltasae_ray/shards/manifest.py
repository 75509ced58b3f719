"""Which shards count. A shard does when its row stands in a commit record or in the compacted manifest; both
are put atomically."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deltasae_ray.errors import ShardError, StorageError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.records import ShardRow
from deltasae_ray.storage import Storage, digest

REDO = "delete it and run the harvest again: only this unit is redone"
_THREADS = 16  # records are tiny: on an object store reading them is all latency


@dataclass(frozen=True)
class Manifest:
    """A snapshot of the shards that count."""

    rows: tuple[ShardRow, ...]
    """Sorted by unit, source and hookpoints, none twice."""
    damaged: tuple[str, ...] = ()
    """What is wrong with each record that could not be read, naming its file. Their units count as
    missing."""

    @classmethod
    def load(cls, storage: Storage, key: str) -> "Manifest":
        """The union of commit records and manifest.jsonl."""
        return cls._load(storage, key)[0]

    @classmethod
    def _load(
        cls, storage: Storage, key: str
    ) -> tuple["Manifest", dict[str, list[ShardRow]], dict[str, str]]:
        """Also the rows by record, and what is wrong by damaged record."""
        records, damaged = read_records(storage, key)
        # last, so that a record that was compacted away in the meantime is found here
        compacted, broken_lines = read_compacted(storage, key)
        # a record is newer than the manifest, and replaces its row
        rows = {row.identity: row for group in (compacted, *records.values()) for row in group}
        manifest = cls(tuple(rows[identity] for identity in sorted(rows)), (*broken_lines, *damaged.values()))
        return manifest, records, damaged

    @classmethod
    def compact(cls, storage: Storage, key: str) -> "Manifest":
        """Gathers all records in manifest.jsonl and removes them. For the driver, at the end; a crash at any
        point loses nothing."""
        manifest, records, damaged = cls._load(storage, key)
        if not records and not manifest.damaged:
            return manifest
        _write_compacted(storage, key, manifest.rows)
        # read back, so that no record goes whose rows another driver's compaction has just overwritten, be it
        # with older ones of that name
        kept = set(read_compacted(storage, key)[0])
        storage.delete_files([n for n, rows in records.items() if kept.issuperset(rows)] + list(damaged))
        return cls(manifest.rows)

    def missing(
        self, units: Iterable[str], wanted: Mapping[str, Sequence[Hookpoint]]
    ) -> dict[str, dict[str, tuple[Hookpoint, ...]]]:
        """Work that is left: unit → source digest → hookpoints, without units and sources that are complete.

        Args:
            wanted: source digest → its hookpoints.
        """
        done: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self.rows:
            done[row.unit, row.source].update(row.hookpoints)
        work: dict[str, dict[str, tuple[Hookpoint, ...]]] = {}
        for unit in units:
            left = {
                s: tuple(h for h in sorted(hooks) if str(h) not in done.get((unit, s), ()))
                for s, hooks in wanted.items()
            }
            if any(left.values()):
                work[unit] = {source: hooks for source, hooks in left.items() if hooks}
        return work


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
    for name, group in read_records(storage, key)[0].items():
        kept = [row for row in group if row.identity not in gone]
        if kept and len(kept) < len(group):
            storage.write_json(name, [row.to_json() for row in kept])
        elif not kept:
            storage.delete_file(name)
    compacted, _ = read_compacted(storage, key)
    if any(row.identity in gone for row in compacted):
        _write_compacted(storage, key, [row for row in compacted if row.identity not in gone])
    storage.delete_files(f"{key}/{row.file}" for row in rows)


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


def read_records(storage: Storage, key: str) -> tuple[dict[str, list[ShardRow]], dict[str, str]]:
    """Rows by record, and what is wrong by damaged record."""

    def attempt(name: str) -> list[ShardRow] | ShardError:
        try:
            return read_commit(storage, name)
        except ShardError as e:
            return e

    names = storage.list(f"{key}/rows", suffix=".json")
    with ThreadPoolExecutor(_THREADS) as pool:
        results = dict(zip(names, pool.map(attempt, names), strict=True))
    records = {name: rows for name, rows in results.items() if not isinstance(rows, ShardError)}
    return records, {name: str(e) for name, e in results.items() if isinstance(e, ShardError)}


def read_compacted(storage: Storage, key: str) -> tuple[list[ShardRow], list[str]]:
    """The rows of manifest.jsonl, and what is wrong with each line that is none."""
    name = f"{key}/manifest.jsonl"
    if not storage.exists(name):
        return [], []
    rows, damaged = [], []
    for number, line in enumerate(storage.read_bytes(name).splitlines(), start=1):
        try:
            rows.append(ShardRow.from_json(json.loads(line)))
        except (ValueError, RecursionError) as e:
            damaged.append(
                f"{storage.path(name)} line {number} is no row ({e}): run the harvest again: only this unit"
                " is redone"
            )
    return rows, damaged


def _write_compacted(storage: Storage, key: str, rows: Iterable[ShardRow]) -> None:
    lines = [json.dumps(row.to_json(), sort_keys=True, separators=(",", ":")) + "\n" for row in rows]
    storage.write_bytes(f"{key}/manifest.jsonl", "".join(lines).encode())
