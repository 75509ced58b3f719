"""The table of monitors: one row per adapter, monitor and figure, in monitors.parquet and monitors.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.storage import Storage

PARQUET, JSON = "monitors.parquet", "monitors.json"
_NUMBERS = ("value", "null", "ceiling", "ci_low", "ci_high", "p")


@dataclass(frozen=True)
class MonitorRow:
    """One figure of one monitor under one adapter."""

    adapter: str
    metric: str
    """Name of the figure, `monitor.NAME.FIGURE`."""
    hookpoint: str
    measure: Measure


def write_monitors(storage: Storage, rows: Sequence[MonitorRow]) -> None:
    """Writes both tables; without rows those of an earlier run are deleted."""
    if not rows:
        for name in (JSON, PARQUET):
            storage.delete_file(name)
        return
    columns = {name: pa.string() for name in ("adapter", "metric", "hookpoint")}
    columns |= {name: pa.float64() for name in _NUMBERS} | {"n": pa.int64(), "reason": pa.string()}
    sink = BytesIO()
    flat = [_flat(row) for row in rows]
    pq.write_table(pa.Table.from_pylist(flat, schema=pa.schema(list(columns.items()))), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
    storage.write_bytes(JSON, json.dumps([asdict(r) for r in rows], indent=1, allow_nan=False).encode())


def _flat(row: MonitorRow) -> dict:
    m = row.measure
    low, high = m.ci or (None, None)
    return {
        "adapter": row.adapter, "metric": row.metric, "hookpoint": row.hookpoint, "value": m.value,
        "null": m.null, "ceiling": m.ceiling, "ci_low": low, "ci_high": high, "p": m.p, "n": m.n,
        "reason": m.reason,
    }  # fmt: skip


def monitor_lines(rows: Sequence[MonitorRow]) -> list[str]:
    """A line per adapter and monitor, for a terminal."""
    by_monitor: dict[tuple[str, str], dict[str, Measure]] = {}
    for row in rows:
        _, name, figure = row.metric.split(".")
        by_monitor.setdefault((row.adapter, name), {})[figure] = row.measure
    lines = []
    for (adapter, name), m in by_monitor.items():
        drop = m["auroc_drop"]
        labels = (
            f"AUROC drop {drop:.3f}" if drop.value is not None else f"AUROC drop undefined ({drop.reason})"
        )
        lines.append(f"Monitor {name} under {adapter}: {labels}; shift {m['shift']:.2f} of its spread")
    return lines
