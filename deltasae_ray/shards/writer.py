"""Writes one shard. It counts only when `commit_unit` has put its row, which comes after the file."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import PrecisionError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.shards.format import encode, to_parquet, width
from deltasae_ray.shards.records import ShardRow, shard_file
from deltasae_ray.storage import Storage


def write_shard(
    storage: Storage,
    key: str,
    source: str,
    unit: TokenBatch,
    vectors: Mapping[Hookpoint, Float32[np.ndarray, "token width"]],
) -> ShardRow:
    """Writes the vectors of one unit and one source (by digest) to one file, a column per hookpoint: d_model
    wide, or an adapter's rank.

    Rows are the unit's real tokens in the order of `unit.token_ids()`. Writing the same again overwrites it
    with the same bytes.

    Raises:
        PrecisionError: NaN or infinity; names unit, source and hookpoint.
        StorageError: the file cannot be written; names it.
    """
    assert vectors, "a shard has at least one hookpoint"

    def encoded(hookpoint: Hookpoint) -> tuple[np.ndarray, np.ndarray]:
        try:
            return encode(vectors[hookpoint])
        except PrecisionError as e:
            raise PrecisionError(
                f"unit {unit.name}, source {source}, {hookpoint}: {e}. Nothing of this shard was written. "
                "Check the adapter's weights for NaN, or harvest in fp32"
            ) from e

    hookpoints = sorted(vectors)
    name = shard_file(unit.name, source, tuple(map(str, hookpoints)))
    with ThreadPoolExecutor(min(len(hookpoints), os.cpu_count() or 1) + 1) as pool:
        data = to_parquet(unit, source, dict(zip(hookpoints, pool.map(encoded, hookpoints), strict=True)))
        written = pool.submit(storage.write_bytes, f"{key}/{name}", memoryview(data))
        sha256 = hashlib.sha256(data).hexdigest()  # while the disk works
        written.result()
    return ShardRow(
        unit=unit.name,
        source=source,
        split=unit.split,
        corpus=unit.corpus,
        hookpoints=tuple(str(h) for h in hookpoints),
        file=name,
        sha256=sha256,
        rows=unit.num_tokens,
        bytes=data.size,
        d_model=width(vectors),
    )
