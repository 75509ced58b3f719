import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltasae_ray.errors import PrecisionError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.format import decode, encode, exponent_column, to_parquet, vectors_from
from tests.shards.made import D_MODEL, HOOKS, make_unit, make_vectors, stored

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
ANY_FINITE = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=FINITE
)


def roundtrip(vectors: np.ndarray) -> np.ndarray:
    out = np.full(vectors.shape, np.nan, np.float32)
    decode(*encode(vectors), out)
    return out


@settings(max_examples=500, deadline=None)
@given(ANY_FINITE)
def test_any_finite_row_comes_back_within_half_a_float16_step(vectors: np.ndarray) -> None:
    back = roundtrip(vectors)
    wide = vectors.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    assert np.isfinite(back).all()
    assert (np.abs(back - wide) <= np.maximum(2.0**-11 * np.abs(wide), 2.0**-39 * largest)).all()
    assert (np.signbit(back) == np.signbit(vectors)).all()


@settings(max_examples=300, deadline=None)
@given(ANY_FINITE, st.integers(-149, 112))
def test_what_float16_holds_is_stored_exactly_at_any_scale(vectors: np.ndarray, power: int) -> None:
    """Integers below 2048 times any power of two: subnormal rows and rows near the top of float32 among
    them."""
    whole = np.ldexp(np.trunc(np.remainder(vectors, 2048)).astype(np.float32), power)
    assert np.array_equal(roundtrip(whole), whole)


def test_conversion_by_bits_equals_numpys_conversion() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1000, 640), np.float32) * np.exp(
        8 * rng.standard_normal((1000, 1), np.float32)
    )
    vectors[::2, ::7] = np.ldexp(
        rng.integers(-4096, 4097, (500, 92)).astype(np.float32), 3
    )  # ties between two float16
    vectors[5] = 0
    halves, exponents = encode(vectors)
    expected = np.ldexp(vectors, -exponents[:, None].astype(np.int32)).astype(np.float16)
    small = (
        np.abs(expected) < 2.0**-14
    )  # float16's subnormals are rounded in two steps: a near tie may fall to the other side
    assert np.array_equal(halves[~small].view(np.uint16), expected[~small].view(np.uint16))
    assert small.sum() > 1000
    assert np.abs(halves[small].astype(np.float32) - expected[small]).max() <= 2.0**-24


def test_every_finite_float16_is_decoded_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(64, 1024)
    halves = halves[np.isfinite(halves).all(axis=1)]
    for power in (-120, -30, 0, 15, 16, 60, 111):
        out = np.empty(halves.shape, np.float32)
        decode(halves, np.full(len(halves), power, np.int16), out)
        assert np.array_equal(out.view(np.uint32), np.ldexp(halves.astype(np.float32), power).view(np.uint32))


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, 2.0**127, 99_535.0, 1.0, 2.0**-126, 2.0**-149])
def test_rows_of_every_magnitude_survive(largest: float) -> None:
    row = (np.array([1, -1, 0.5, -0.0, 0.001]) * largest).astype(np.float32)
    back = roundtrip(row[None])[0]
    assert np.isfinite(back).all()
    assert np.abs(back - row).max() <= 2.0**-11 * largest


def test_a_zero_delta_is_bitwise_zero() -> None:
    halves, exponents = encode(np.zeros((3, 8), np.float32))
    assert not halves.view(np.uint16).any()
    assert not exponents.any()
    assert not roundtrip(np.zeros((3, 8), np.float32)).view(np.uint32).any()


def test_rounding_loses_less_than_a_millionth_of_the_energy() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 256), np.float32) * np.exp(rng.standard_normal(256)).astype(np.float32)
    x[:, 3] *= 300  # a massive coordinate, as residual streams have
    error = (roundtrip(x).astype(np.float64) - x) ** 2
    assert error.sum() / ((x - x.mean(axis=0)) ** 2).sum() < 1e-6
    rest = np.arange(256) != 3
    assert error[:, rest].sum() / (x[:, rest] ** 2).sum() < 1e-6


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_counted(poison: float) -> None:
    vectors = np.ones((600, 4), np.float32)
    vectors[[300, 599], 2] = poison
    with pytest.raises(PrecisionError, match="2 of 600 rows .* row 300"):
        encode(vectors)


def test_float64_is_not_rounded_silently() -> None:
    with pytest.raises(AssertionError, match="float32"):
        encode(np.ones((2, 2)))


def test_a_file_is_plain_parquet_with_one_group_and_its_facts() -> None:
    unit = make_unit(0)
    data = to_parquet(unit, "base", {h: encode(make_vectors(unit, "base", h)) for h in reversed(HOOKS)})
    shard = pq.ParquetFile(pa.BufferReader(data))
    assert shard.num_row_groups == 1
    assert shard.schema_arrow.names == [
        *("doc_id", "position", "token_id", "marker"),
        *(name for h in HOOKS for name in (str(h), exponent_column(h))),
    ]
    assert shard.schema_arrow.metadata[b"dtype"] == b"float16"
    assert shard.schema_arrow.metadata[b"d_model"] == str(D_MODEL).encode()
    for index in range(shard.metadata.num_columns):
        column = shard.metadata.row_group(0).column(index)
        assert column.compression == "UNCOMPRESSED"
        assert not column.has_dictionary_page
        assert column.statistics is None
    table = shard.read()
    assert table["token_id"].to_pylist() == unit.token_ids().tolist()
    assert table["position"].to_pylist() == unit.positions().tolist()
    assert table["marker"].to_pylist() == unit.marker[unit.mask].tolist()
    assert table["doc_id"].to_pylist() == unit.row_doc_ids().tolist()


def test_slices_and_chunks_of_a_table_decode_to_their_rows() -> None:
    unit, hook = make_unit(1), HOOKS[0]
    vectors = make_vectors(unit, "base", hook)
    table = pq.read_table(pa.BufferReader(to_parquet(unit, "base", {hook: encode(vectors)})))
    for part, rows in ((table[3:8], slice(3, 8)), (pa.concat_tables([table[:5], table[5:]]), slice(None))):
        out = np.empty_like(vectors[rows])
        vectors_from(part, hook, out)
        assert np.array_equal(out, stored(vectors)[rows])


def test_a_column_of_another_width_is_refused() -> None:
    unit, hook = make_unit(1), HOOKS[0]
    table = pq.read_table(
        pa.BufferReader(to_parquet(unit, "base", {hook: encode(make_vectors(unit, "base", hook))}))
    )
    with pytest.raises(ValueError, match="not 25 float16"):
        vectors_from(table, hook, np.empty((unit.num_tokens, 25), np.float32))


SCRIPT = """
import hashlib
from deltasae_ray.shards.format import encode, to_parquet
from tests.shards.made import HOOKS, make_unit, make_vectors
unit = make_unit(3)
print(hashlib.sha256(to_parquet(unit, "base", {h: encode(make_vectors(unit, "base", h)) for h in HOOKS})).hexdigest())
"""


def test_the_same_input_has_the_same_bytes_in_every_process() -> None:
    hashes = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
            check=True,
        )
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_vectors_of_another_unit_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="one row per real token"):
        to_parquet(make_unit(0), "base", {Hookpoint(0): encode(np.ones((2, 4), np.float32))})
