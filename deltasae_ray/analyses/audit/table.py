"""The audit as a table: every row in audit.parquet and audit.json, the leading ones on the page."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.storage import Storage

PARQUET, JSON = "audit.parquet", "audit.json"
_PARTS = {"": "value", "_null": "null", "_ceiling": "ceiling", "_p": "p", "_reason": "reason"}
"""Ending of a column → the part of a measure that stands in it; the ends of its interval are `_low` and `_high`."""


@dataclass(frozen=True)
class AuditRow:
    """One direction: a latent, the mean change, or the mean change on the first tokens of unrelated text."""

    name: str
    """As in `Audited.directions`."""
    latent: int | None
    rank: int | None
    """By energy × reproducibility; 0 is the mean change, and None stands beside the ranking."""
    peak_rank: int | None
    energy_share: float | None
    peak_energy: float | None
    invisibility: Measure
    percentile: float | None
    percentile_haar: float | None
    blind_spot: float | None
    reproducibility: Measure
    repeats: bool | None
    nearest: int | None
    nearest_cosine: float | None
    lens_peak: Measure
    ablated: Measure
    added: Measure
    promoted: tuple[str, ...] = ()
    suppressed: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """As the page names it."""
        return f"latent {self.latent}" if self.latent is not None else {"mean": "the mean change"}.get(self.name, self.name)


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

    @property
    def known(self) -> int:
        """Rows of which it is known whether they repeat."""
        return sum(row.repeats is not None for row in self.rows)

    @property
    def repeating(self) -> int:
        return sum(row.repeats is True for row in self.rows)


def write_audit(storage: Storage, groups: Sequence[AuditGroup]) -> None:
    """audit.parquet and audit.json below the storage root; nothing in them is NaN, and what is undefined is null, with its reason."""
    records = [record for group in groups for record in _records(group)]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=_schema()), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
    storage.write_bytes(JSON, json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False).encode())


_OF_GROUP = ("adapter", "layer", "d_sae", "k", "architecture", "seed", "reference")


def _records(group: AuditGroup) -> Iterable[dict[str, Any]]:
    for row in group.rows:
        record = {name: getattr(group, name) for name in _OF_GROUP}
        for name, value in ((f.name, getattr(row, f.name)) for f in fields(row)):
            record |= _columns(name, value) if isinstance(value, Measure) else {name: list(value) if isinstance(value, tuple) else value}
        yield record


def _columns(name: str, measure: Measure) -> dict[str, Any]:
    low, high = measure.ci or (None, None)
    return {f"{name}{ending}": getattr(measure, part) for ending, part in _PARTS.items()} | {f"{name}_low": low, f"{name}_high": high}


def _schema() -> pa.Schema:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), tuple[str, ...]: pa.list_(pa.string())}
    columns: list[tuple[str, pa.DataType]] = []
    for f in (*(f for f in fields(AuditGroup) if f.name in _OF_GROUP), *fields(AuditRow)):
        if f.type is Measure:
            columns += [(name, pa.string() if name.endswith("_reason") else pa.float64()) for name in _columns(f.name, Measure(0.0))]
        else:
            columns.append((f.name, next(arrow for kind, arrow in kinds.items() if f.type in (kind, kind | None))))
    return pa.schema(columns)
