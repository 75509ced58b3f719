"""The table: one row per adapter, layer, dictionary and metric. Nothing in it is NaN; what is undefined is null, with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.diverge.leaves import LeafSpec
from deltasae_ray.divergence.catalogue import BETWEEN
from deltasae_ray.divergence.measure import Measure
from deltasae_ray.divergence.statistics import benjamini_hochberg
from deltasae_ray.divergence.verdict import LeafFigures
from deltasae_ray.storage import Storage

PARQUET, JSON = "divergence.parquet", "divergence.json"


@dataclass(frozen=True)
class DivergenceRow:
    """One figure of one leaf."""

    adapter: str
    rank: int | None
    adapter_seed: int | None
    layer: int
    d_sae: int
    k: int
    architecture: str
    seed: int
    reference: str
    """What it is held against: the reference's name, or another adapter's for figures between adapters."""
    metric: str
    """As in the catalogue of metrics."""
    value: float | None
    null: float | None
    ceiling: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    """Adjusted over layers and adapters (Benjamini-Hochberg, for positively dependent tests)."""
    kappa: float | None
    n: int
    reason: str

    @classmethod
    def of(cls, leaf: LeafSpec, metric: str, m: Measure, *, reference: str | None = None) -> "DivergenceRow":
        low, high = m.ci or (None, None)
        return cls(
            adapter=leaf.adapter,
            rank=leaf.rank,
            adapter_seed=leaf.adapter_seed,
            layer=leaf.layer,
            d_sae=leaf.d_sae,
            k=leaf.k,
            architecture=leaf.architecture,
            seed=leaf.seed,
            reference=reference or leaf.reference_name,
            metric=metric,
            value=m.value,
            null=m.null,
            ceiling=m.ceiling,
            ci_low=low,
            ci_high=high,
            p=m.p,
            kappa=m.kappa,
            n=m.n,
            reason=m.reason,
        )

    @property
    def measure(self) -> Measure:
        ci = None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)
        return Measure(self.value, self.null, self.ceiling, ci, self.p, self.kappa, self.n, self.reason)


def corrected(rows: Sequence[DivergenceRow]) -> list[DivergenceRow]:
    """The rows with p adjusted over layers and adapters, separately for every metric and shape of dictionary."""
    families: dict[tuple, list[int]] = defaultdict(list)
    for i, r in enumerate(rows):
        if r.p is not None:
            families[r.metric, r.d_sae, r.k, r.architecture, r.seed].append(i)
    out = list(rows)
    for members in families.values():
        adjusted = benjamini_hochberg([rows[i].p or 0.0 for i in members])
        for i, p in zip(members, adjusted, strict=True):
            out[i] = replace(rows[i], p=float(p))
    return out


def write_table(storage: Storage, rows: Sequence[DivergenceRow]) -> None:
    """divergence.parquet and divergence.json below the storage root."""
    types = {"str": pa.string(), "int": pa.int64(), "int | None": pa.int64(), "float | None": pa.float64()}
    annotations = {f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type)) for f in fields(DivergenceRow)}
    schema = pa.schema([(name, types[kind]) for name, kind in annotations.items()])
    records = [asdict(r) for r in rows]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
    storage.write_bytes(JSON, json.dumps(records, indent=1, allow_nan=False).encode())


def read_table(storage: Storage) -> list[DivergenceRow]:
    """What `write_table` wrote."""
    return [DivergenceRow(**record) for record in json.loads(storage.read_bytes(JSON))]


def leaf_figures(rows: Iterable[DivergenceRow], adapter: str) -> list[LeafFigures]:
    """The rows of one adapter as the verdict reads them; figures between adapters are left out."""
    found: dict[tuple, dict[str, Measure]] = defaultdict(dict)
    for r in rows:
        if r.adapter == adapter and not r.metric.endswith(BETWEEN):
            found[r.layer, r.d_sae, r.k, r.seed, r.architecture][r.metric] = r.measure
    return [LeafFigures(*shape[:4], measures=measures) for shape, measures in sorted(found.items(), key=lambda item: item[0])]
