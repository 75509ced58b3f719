"""Reads adapters' weights, keeps the directions that they write, and writes weights.parquet."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.analyses.weights.figures import WeightDirection, weight_directions
from deltasae_ray.errors import StorageError
from deltasae_ray.metrics.geometry.weight_products import products
from deltasae_ray.models.adapter_files import read_tensors
from deltasae_ray.models.adapters import AdapterRef, fetch
from deltasae_ray.runtime.context import remembered
from deltasae_ray.storage import Storage

PARQUET = "weights.parquet"
VERSION = 1

Directions = dict[str, tuple[WeightDirection, ...]]
"""Adapter → what its weights write."""


def directions_of(storage: Storage, adapters: Sequence[AdapterRef]) -> Directions:
    """What the weights of each adapter write; taken apart once per content."""
    refs = {ref.name: ref for ref in adapters}

    def make(missing: list[str]) -> dict[str, dict]:
        with tempfile.TemporaryDirectory() as scratch:
            folders = fetch(storage, [refs[name] for name in missing], Path(scratch))
            return {name: {"directions": _of(folders[name])} for name in missing}

    keys = {name: f"weights/{VERSION}-{ref.digest}.json" for name, ref in refs.items()}
    directions = remembered(storage, keys, make)
    try:
        return {
            name: msgspec.convert(row["directions"], tuple[WeightDirection, ...])
            for name, row in directions.items()
        }
    except (msgspec.ValidationError, KeyError, TypeError) as e:
        place = storage.path("weights")
        raise StorageError(f"{place} holds no directions ({e!r}): delete that folder and run again") from e


def _of(folder: Path) -> list[dict]:
    return [asdict(d) for d in weight_directions(products(read_tensors(folder)))]


def write_directions(storage: Storage, of_adapters: Mapping[str, Sequence[WeightDirection]]) -> None:
    """Writes weights.parquet: a row per direction, with the vector itself."""
    columns = [("adapter", pa.string()), ("module", pa.string()), ("place", pa.int64())]
    columns += [("share", pa.float64()), ("of_module", pa.float64()), ("direction", pa.list_(pa.float32()))]
    rows = [{"adapter": name} | asdict(d) for name, directions in of_adapters.items() for d in directions]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
