"""One shard in memory: float32 vectors to Parquet bytes and back. Pure; the same input gives the same bytes
in every process.

A vector is stored as float16 times a power of two per row ("<hookpoint>.exponent", int16), so that no finite
float32 overflows and scaling loses nothing: the largest coordinate of a row lies in [2^14, 2^15) before
rounding. Against the row's largest magnitude m, a coordinate x is off by at most max(2^-11 |x|, 2^-39 m).

float16 and float32 are converted by shifting bits, since NumPy's own conversion takes 2–3 times as long (0.46
GB/s against 1.0 to float16, 0.97 against 2.6 back, on a Zen 4 core): times 2^-112, the exponent fields of the
two formats mean the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float32, Int16

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import PrecisionError
from deltasae_ray.hookpoints import Hookpoint

FORMAT = b"1"
TOKEN_COLUMNS = ("doc_id", "position", "token_id", "marker")
# frexp's exponent of a row's largest magnitude after scaling: one step below float16's limit, so rounding
# cannot reach inf
_TOP = 15
_SHIFT = 112  # float32's exponent bias, 127, minus float16's, 15
_LARGEST = np.float32(2.0**128 - 2.0**117)  # the largest number of 11 bits in float32's range
_NOT_FINITE = np.iinfo(np.int16).max  # marks rows with NaN or infinity until they are reported
_BLOCK_ROWS = 256  # rows converted at once: the scratch arrays stay in the cache


def exponent_column(hookpoint: Hookpoint) -> str:
    """Name of the column that holds a hookpoint's row exponents."""
    return f"{hookpoint}.exponent"


def encode(
    vectors: Float32[np.ndarray, "token d_model"],
) -> tuple[Float16[np.ndarray, "token d_model"], Int16[np.ndarray, " token"]]:
    """Halves h and exponents e with vectors ≈ h · 2^e, rounded to nearest, ties to even (in two steps where h
    is subnormal).

    A zero row has e = 0.

    Raises:
        PrecisionError: NaN or infinity; the message counts the rows and names the first.
    """
    assert vectors.dtype == np.float32, "subtraction and storage take float32: cast before, where it is seen"
    halves = np.empty(vectors.shape, np.uint16)
    exponents = np.empty(len(vectors), np.int16)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        exponents[rows] = _encode_block(vectors[rows], halves[rows])
    bad = np.flatnonzero(exponents == _NOT_FINITE)
    if len(bad):
        raise PrecisionError(
            f"{len(bad)} of {len(vectors)} rows hold NaN or infinity, the first is row {bad[0]}"
        )
    return halves.view(np.float16), exponents


def _encode_block(vectors: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes the halves' bits to `out` (uint16) and returns the exponents, _NOT_FINITE for rows with NaN or
    infinity."""
    scaled = np.abs(vectors)
    largest = scaled.max(axis=1, initial=0.0)
    finite = np.isfinite(largest)
    exponents = np.where(finite & (largest > 0), np.frexp(np.where(finite, largest, 0))[1] - _TOP, 0)
    if np.any(largest > _LARGEST):
        vectors = np.clip(vectors, -_LARGEST, _LARGEST)  # rounding up would leave float32
    _scale(vectors, -exponents - _SHIFT, out=scaled)
    bits = scaled.view(np.uint32)
    half = bits >> 13
    half &= 1  # ties go to the even neighbour
    half += 0x0FFF
    half += bits
    half >>= 13
    bits >>= 16
    bits &= 0x8000  # the sign
    half |= bits
    out[...] = half
    return np.where(finite, exponents, _NOT_FINITE)


def decode(
    halves: Float16[np.ndarray, "token d_model"],
    exponents: Int16[np.ndarray, " token"],
    out: Float32[np.ndarray, "token d_model"],
) -> None:
    """Writes halves · 2^exponents to `out`, exactly."""
    bits = halves.view(np.int16)
    for start in range(0, len(bits), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        block = out[rows]
        wide = block.view(np.int32)
        wide[...] = bits[rows]
        wide <<= 13
        wide &= np.int32(
            -0x70002000
        )  # 0x8FFFE000: the copies of the sign above the exponent go, the sign itself stays
        _scale(block, exponents[rows].astype(np.int32) + _SHIFT, out=block)


def _scale(vectors: np.ndarray, exponents: np.ndarray, out: np.ndarray) -> None:
    """out = vectors · 2^exponents, row by row; 2^exponent may lie outside float32, the product must not."""
    near = np.clip(exponents, -126, 127)
    np.multiply(vectors, np.ldexp(np.float32(1), near)[:, None], out=out)
    if np.any(far := exponents - near):
        out *= np.ldexp(np.float32(1), far)[:, None]


def width(vectors: Mapping[Hookpoint, np.ndarray]) -> int:
    """What a shard of these says its d_model is: the residual stream's; where it holds low-rank coordinates
    only, the largest rank."""
    stream = {v.shape[1] for h, v in vectors.items() if h.site != "lora"}
    assert len(stream) <= 1, "the residual stream has one width"
    return stream.pop() if stream else max(v.shape[1] for v in vectors.values())


def to_parquet(
    unit: TokenBatch, source: str, columns: Mapping[Hookpoint, tuple[np.ndarray, np.ndarray]]
) -> pa.Buffer:
    """The bytes of one shard: the unit's tokens and, per hookpoint, what `encode` returned. One row group."""
    d_model = width({hookpoint: halves for hookpoint, (halves, _) in columns.items()})
    rows = unit.num_tokens
    assert all(len(halves) == rows for halves, _ in columns.values()), (
        "a unit's vectors have one row per real token"
    )
    fields: list[tuple[str, pa.Array]] = [
        ("doc_id", pa.array(unit.row_doc_ids(), pa.string())),
        ("position", pa.array(unit.positions(), pa.int32())),
        ("token_id", pa.array(unit.token_ids(), pa.int32())),
        ("marker", pa.array(unit.marker[unit.mask], pa.bool_())),
    ]
    for hookpoint, (halves, exponents) in sorted(columns.items()):
        fields.append((str(hookpoint), _fixed_size_binary(halves)))
        fields.append((exponent_column(hookpoint), pa.array(exponents, pa.int16())))
    facts = {
        "format": FORMAT,
        "dtype": "float16",
        "exponent": "int16, power of two per row",
        "d_model": str(d_model),
    }
    facts |= {"unit": unit.name, "source": source, "split": unit.split, "corpus": unit.corpus}
    schema = pa.schema([pa.field(name, array.type, nullable=False) for name, array in fields], metadata=facts)
    table = pa.Table.from_arrays([array for _, array in fields], schema=schema)
    sink = pa.BufferOutputStream()
    # no dictionary, statistics or compression: vectors have nothing to gain, and plain pages are copied at
    # memory speed; a CRC per page, so that a read of one column finds a flipped bit in it
    pq.write_table(
        table,
        sink,
        row_group_size=max(rows, 1),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


def described(data: pa.Buffer) -> dict[str, Any]:
    """What the bytes of a shard say of it: unit, source, split, corpus, hookpoints, rows and d_model. Reads
    every page.

    Raises:
        pa.ArrowException, OSError or ValueError: it is damaged, or no shard.
    """
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    facts = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
    hookpoints = [
        n for n in file.schema_arrow.names if n not in TOKEN_COLUMNS and not n.endswith(".exponent")
    ]
    width, names = facts.get("d_model", ""), ("unit", "source", "split", "corpus")
    if facts.get("format") != FORMAT.decode() or not width.isdecimal() or not {*names} <= set(facts):
        raise ValueError("it does not say what it is")
    for name in hookpoints:
        file.read([name, f"{name}.exponent"], use_threads=False)
    file.read(list(TOKEN_COLUMNS), use_threads=False)
    own = {name: facts[name] for name in names}
    return {**own, "hookpoints": hookpoints, "rows": file.metadata.num_rows, "d_model": int(width)}


def _fixed_size_binary(halves: np.ndarray) -> pa.FixedSizeBinaryArray:
    data = np.ascontiguousarray(halves.astype("<f2", copy=False))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * data.shape[1]), len(data), [None, pa.py_buffer(data)]
    )


def vectors_from(table: pa.Table, hookpoint: Hookpoint, out: Float32[np.ndarray, "token d_model"]) -> None:
    """Decodes a hookpoint's two columns of `table` into `out`.

    Raises:
        ValueError: the columns do not hold d_model float16 per row.
    """
    column = table[str(hookpoint)]
    if column.type != pa.binary(2 * out.shape[1]):
        raise ValueError(f"{hookpoint} is of type {column.type}, not {out.shape[1]} float16 per row")
    powers = table[exponent_column(hookpoint)]
    if powers.type != pa.int16() or powers.null_count or column.null_count:
        raise ValueError(f"{hookpoint} has gaps, or exponents of type {powers.type} and not int16")
    exponents = powers.to_numpy()
    start = 0
    for chunk in column.chunks:
        flat = np.frombuffer(chunk.buffers()[1], dtype="<f2")
        halves = flat.reshape(-1, out.shape[1])[chunk.offset : chunk.offset + len(chunk)]
        decode(halves, exponents[start : start + len(chunk)], out[start : start + len(chunk)])
        start += len(chunk)
