"""The audit as a table: every row in audit.parquet and audit.json, the leading ones on the page."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.analyses.audit.figures import AuditedLatent
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.storage import Storage

PARQUET, JSON = "audit.parquet", "audit.json"
STRENGTHS = (0.5, 1.0)
"""Length of a direction that is added to the base, in lengths of its ordinary residual stream at that
layer."""
_PARTS = {"": "value", "_null": "null", "_ceiling": "ceiling", "_p": "p", "_reason": "reason"}
"""Ending of a column → the part of a measure that stands in it; the ends of its interval are `_low` and
`_high`."""


@dataclass(frozen=True)
class AuditRow(AuditedLatent):
    """One direction: a latent, the mean change, or the mean change on the first tokens of unrelated text."""

    name: str
    """Name of the direction, a key of `Audited.directions`."""
    lens_peak: Measure
    ablated: Measure
    added: Measure
    promoted: tuple[str, ...] = ()
    suppressed: tuple[str, ...] = ()
    steered: tuple[str, ...] = ()
    """What the base writes with the direction added, a text for each of STRENGTHS."""

    @property
    def called(self) -> str:
        """Name of the row on the page."""
        return (
            f"latent {self.latent}"
            if self.latent is not None
            else {"mean": "the mean change"}.get(self.name, self.name)
        )


@dataclass(frozen=True)
class AuditGroup(DictionaryId):
    """The audit of one dictionary."""

    reference: str
    alive: int
    rows: tuple[AuditRow, ...]
    blind_energy: Measure
    repeating_energy: Measure
    notes: tuple[str, ...] = ()
    """What is missing here, and why."""
    random_steered: tuple[tuple[str, ...], ...] = ()
    """What the base writes with random directions of the same length added."""

    @property
    def known(self) -> int:
        """Rows of which it is known whether they repeat."""
        return sum(row.repeats is not None for row in self.rows)

    @property
    def repeating(self) -> int:
        return sum(row.repeats is True for row in self.rows)


def write_audit(storage: Storage, groups: Sequence[AuditGroup]) -> None:
    """audit.parquet and audit.json below the storage root; nothing in them is NaN, and what is undefined is
    null, with its reason."""
    records = [record for group in groups for record in _records(group)]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=_schema()), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
    storage.write_bytes(JSON, json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False).encode())


_OF_GROUP = {
    "adapter": str,
    "layer": int,
    "d_sae": int,
    "k": int,
    "architecture": str,
    "seed": int,
    "reference": str,
}
_OF_ROW = {
    "name": str, "latent": int, "rank": int, "peak_rank": int, "energy_share": float, "peak_energy": float,
    "invisibility": Measure,
    "percentile": float, "percentile_haar": float, "blind_spot": float, "reproducibility": Measure,
    "repeats": bool, "nearest": int,
    "nearest_cosine": float, "lens_peak": Measure, "ablated": Measure, "added": Measure, "promoted": tuple,
    "suppressed": tuple, "steered": tuple,
}  # fmt: skip
"""Columns in their order, with their types; a measure has a column for each of its parts."""


def _records(group: AuditGroup) -> Iterable[dict[str, Any]]:
    for row in group.rows:
        record = {name: getattr(group, name) for name in _OF_GROUP}
        for name, value in ((name, getattr(row, name)) for name in _OF_ROW):
            record |= (
                _columns(name, value)
                if isinstance(value, Measure)
                else {name: list(value) if isinstance(value, tuple) else value}
            )
        yield record


def _columns(name: str, measure: Measure) -> dict[str, Any]:
    low, high = measure.ci or (None, None)
    return {f"{name}{ending}": getattr(measure, part) for ending, part in _PARTS.items()} | {
        f"{name}_low": low,
        f"{name}_high": high,
    }


def _schema() -> pa.Schema:
    kinds = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        tuple: pa.list_(pa.string()),
    }
    columns: list[tuple[str, pa.DataType]] = []
    for column, kind in (_OF_GROUP | _OF_ROW).items():
        if kind is Measure:
            columns += [
                (name, pa.string() if name == f"{column}_reason" else pa.float64())
                for name in _columns(column, Measure(0.0))
            ]
        else:
            columns.append((column, kinds[kind]))
    return pa.schema(columns)
