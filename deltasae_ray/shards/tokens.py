"""The tokens behind the rows: the document, position and id of each, in the order of the vectors."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32

from deltasae_ray.shards.format import TOKEN_COLUMNS
from deltasae_ray.shards.integrity import THREADS, opened
from deltasae_ray.shards.records import ShardRow
from deltasae_ray.storage import Storage

_TYPES = [pa.string(), pa.int32(), pa.int32(), pa.bool_()]
"""Of TOKEN_COLUMNS."""


@dataclass(frozen=True)
class TokenTable:
    """What is known of each stored row, in the order of `ShardSet.read`."""

    doc_id: np.ndarray
    """object [token]"""
    corpus: np.ndarray
    """object [token]"""
    split: np.ndarray
    """object [token]"""
    position: Int32[np.ndarray, " token"]
    """In the context. 0 is BOS, or the first token where the tokenizer has none. No other row is of BOS:
    where a text writes it itself, it is masked and has no row."""
    token_id: Int32[np.ndarray, " token"]
    marker: Bool[np.ndarray, " token"]
    """True on the tokens of the planted marker and its reply."""

    @property
    def used(self) -> Bool[np.ndarray, " token"]:
        """The rows that dictionaries are fitted to and figures are of: all but position 0."""
        return self.position > 0

    def __len__(self) -> int:
        return len(self.position)


def read_tokens(storage: Storage, key: str, shards: Sequence[ShardRow]) -> TokenTable:
    """The tokens of shards, one after the other; no vector is read."""

    def load(row: ShardRow) -> pa.Table:
        with opened(storage, key, row) as shard:
            table = shard.read(list(TOKEN_COLUMNS), use_threads=False).replace_schema_metadata(None)
            if table.schema.types != _TYPES or any(column.null_count for column in table.columns):
                raise ValueError(
                    f"its tokens are of types {[str(t) for t in table.schema.types]} or have gaps"
                )
            return table

    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(load, shards))
    lengths = [row.rows for row in shards]
    return TokenTable(
        doc_id=_strings([t["doc_id"] for t in tables]),
        corpus=np.repeat(np.array([row.corpus for row in shards], dtype=object), lengths),
        split=np.repeat(np.array([row.split for row in shards], dtype=object), lengths),
        position=np.concatenate([np.empty(0, np.int32), *(t["position"].to_numpy() for t in tables)]),
        token_id=np.concatenate([np.empty(0, np.int32), *(t["token_id"].to_numpy() for t in tables)]),
        marker=np.concatenate([np.empty(0, bool), *(t["marker"].to_numpy() for t in tables)]),
    )


def _strings(columns: list[pa.ChunkedArray]) -> np.ndarray:
    """object [row]; equal strings are one object, so that a million rows of a thousand documents stay
    small."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    if not chunks:
        return np.empty(0, dtype=object)
    encoded = pa.concat_arrays(chunks).dictionary_encode()
    return np.array(encoded.dictionary.to_pylist(), dtype=object)[encoded.indices.to_numpy()]
