"""Rows of shards as columns of an Arrow table, some 100 bytes a row, and as the Parquet file that a manifest
is. Pure; equal rows give equal tables."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from deltasae_ray.shards.records import ShardRow, shard_file

pc: Any = pyarrow.compute  # its functions are made as it is imported, and no type checker sees them

_CODED = ("source", "hookpoints", "split", "corpus")
"""Columns of few values, which are kept once each."""
_TEXT = pa.dictionary(pa.int32(), pa.string())
_KEY = ("source", "unit", "hookpoints")
"""What a table is sorted by, and lists once."""
SCHEMA = pa.schema(
    [
        pa.field("source", _TEXT, nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("hookpoints", _TEXT, nullable=False),
        pa.field("split", _TEXT, nullable=False),
        pa.field("corpus", _TEXT, nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("d_model", pa.int64(), nullable=False),
    ]
)
"""Of a table of shards. `hookpoints` are joined by commas; the file of a shard follows from its key."""
_ROW_GROUP = 2**16
_DIGEST = "sha256 of the rows"
_UNIT = re.compile(r"^[\w-][\w.-]{0,199}$", re.ASCII)
_MOST = 2**53


def to_table(rows: Iterable[ShardRow]) -> pa.Table:
    """A table of these rows as they come; `merged` sorts it."""
    rows = list(rows)
    columns: dict[str, list] = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    columns["hookpoints"] = [",".join(names) for names in columns["hookpoints"]]
    columns["sha256"] = [bytes.fromhex(text) for text in columns["sha256"]]
    plain = {name: pa.string() if name in _CODED else SCHEMA.field(name).type for name in columns}
    arrays = {name: pa.array(values, plain[name]) for name, values in columns.items()}
    coded = {name: array.dictionary_encode() if name in _CODED else array for name, array in arrays.items()}
    return pa.Table.from_arrays(list(coded.values()), schema=SCHEMA)


def to_rows(table: pa.Table) -> tuple[ShardRow, ...]:
    """The rows of a table, in its order: 1.4 kB each, so ask `table` for few."""
    columns = {name: table[name].to_pylist() for name in SCHEMA.names}
    columns["hookpoints"] = [tuple(text.split(",")) for text in columns["hookpoints"]]
    columns["sha256"] = [data.hex() for data in columns["sha256"]]
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return tuple(
        ShardRow(**row, file=shard_file(row["unit"], row["source"], row["hookpoints"])) for row in rows
    )


def merged(*tables: pa.Table) -> pa.Table:
    """All rows, sorted by source, unit and hookpoints; of rows of one shard the one that comes last."""
    whole = pa.concat_tables(tables).unify_dictionaries()
    columns = {name: _whole(whole[name]) for name in SCHEMA.names}
    columns |= {name: _ordered(columns[name]) for name in _CODED}
    keys = pa.table({n: columns[n].indices if n in _CODED else columns[n] for n in _KEY})
    order = pc.sort_indices(
        keys, sort_keys=[(name, "ascending") for name in _KEY]
    )  # stable: the last stays last
    keys = keys.take(order)
    repeated = [
        pc.equal(_whole(keys[n].slice(1)), _whole(keys[n].slice(0, max(0, len(keys) - 1)))) for n in _KEY
    ]
    last = ~np.append(np.logical_and.reduce([_numpy(r) for r in repeated]), np.zeros(min(1, len(keys)), bool))
    order = order.filter(pa.array(last))
    arrays = [columns[name].take(order) for name in SCHEMA.names]
    if not last.all():  # values that only older rows had go
        arrays = [_ordered(a) if n in _CODED else a for n, a in zip(SCHEMA.names, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _ordered(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """A dictionary-coded column with the dictionary sorted and without what is not used: codes rise with
    values."""
    codes, values = _numpy(array.indices).astype(np.int64), array.dictionary.to_pylist()
    used = np.flatnonzero(np.bincount(codes, minlength=len(values)))
    order = sorted(used.tolist(), key=values.__getitem__)
    place = np.zeros(len(values), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    ordered = pa.array([values[i] for i in order], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(place[codes], pa.int32()), ordered)


def to_parquet(table: pa.Table) -> pa.Buffer:
    """The bytes of a table, with a digest of its rows: Parquet's own checksums leave out the footer."""
    table, sink = merged(table), pa.BufferOutputStream()
    marked = table.cast(_plain()).replace_schema_metadata({_DIGEST: _digest(table)})
    few: Any = list(_CODED)  # pyarrow takes names too, which its types do not say
    pq.write_table(
        marked, sink, row_group_size=_ROW_GROUP, compression="zstd", write_page_checksum=True,
        use_dictionary=few,
    )  # fmt: skip
    return sink.getvalue()


def _digest(table: pa.Table) -> str:
    """A digest of the rows of a merged table: 64 hex digits."""
    digest = hashlib.sha256()
    for name in SCHEMA.names:
        column = _whole(table[name])
        if name in _CODED:
            digest.update("\0".join(column.dictionary.to_pylist()).encode())
            digest.update(_numpy(column.indices).tobytes())
        elif pa.types.is_integer(column.type):
            digest.update(_numpy(column).tobytes())
        else:
            for start in range(0, len(column), _ROW_GROUP):
                parts = column.slice(start, _ROW_GROUP).cast(pa.binary()).to_pylist()
                digest.update(b"\0".join(parts))
    return digest.hexdigest()


def _plain() -> pa.Schema:
    return pa.schema([f.with_type(pa.string()) if f.name in _CODED else f for f in SCHEMA])


def from_parquet(data: bytes) -> pa.Table:
    """Inverse of `to_parquet`.

    Raises:
        ValueError: the bytes are damaged, or no manifest's.
    """
    try:
        file = pq.ParquetFile(
            pa.BufferReader(data), read_dictionary=list(_CODED), page_checksum_verification=True
        )
        # before any value is made: a column of a library's own type would run that library's code
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError("its columns are not those of a manifest")
        table = file.read()
        table.validate(full=True)
        table = merged(table)
        if (file.schema_arrow.metadata or {}).get(_DIGEST.encode()) != _digest(table).encode():
            raise ValueError("its rows are not those that were written")
    except (pa.ArrowException, OSError, MemoryError, LookupError, TypeError) as e:
        raise ValueError(f"its pages cannot be read ({e})") from e
    _check(table)
    return table


def _check(table: pa.Table) -> None:
    """Raises ValueError where a row could not be a shard's, or would lead to another folder."""
    for name in ("rows", "bytes", "d_model"):
        span = pc.min_max(table[name]).as_py()
        if table.num_rows and not (span["min"] >= 0 and span["max"] <= _MOST):
            raise ValueError(f"{name}={span} are no counts")
    if not pc.all(pc.match_substring_regex(table["unit"], _UNIT.pattern), min_count=0).as_py():
        raise ValueError("a unit has a name that none can have")
    for source in table["source"].combine_chunks().dictionary.to_pylist():
        if not _UNIT.match(source):
            raise ValueError(f"source={source[:80]!r} is no name of a source")
    for text in table["hookpoints"].combine_chunks().dictionary.to_pylist():
        shard_file("unit", "source", tuple(text.split(",")))
