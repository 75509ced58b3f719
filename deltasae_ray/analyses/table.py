"""The table: one row per adapter, layer, dictionary and metric. Nothing in it is NaN; what is undefined is null, with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import false_discovery_control

from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.verdict import LeafFigures
from deltasae_ray.metrics.absent_parts import lacking
from deltasae_ray.metrics.catalogue import BETWEEN, SEEDS
from deltasae_ray.metrics.measure import Measure, Part
from deltasae_ray.metrics.over_seeds import Cell, over_seeds, pooled
from deltasae_ray.sae.identity import DictionaryId, Place, Shape
from deltasae_ray.sae.names import Architecture
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
    architecture: Architecture
    seed: int | None
    """Of the dictionary's training; None for a figure over all seeds (`…_seeds`)."""
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
    kappa_low: float | None = None
    kappa_high: float | None = None
    lacks: str = ""
    """Which of null, ceiling, kappa and p is missing, and why."""
    reasons: tuple[tuple[Part, str], ...] = ()
    """`reason`, part by part; in JSON only."""

    @classmethod
    def of(cls, leaf: LeafSpec, metric: str, m: Measure, *, reference: str | None = None) -> "DivergenceRow":
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
            **_parts(metric, m),
        )

    def over_seeds(self, m: Measure) -> "DivergenceRow":
        """The row of the same metric over all seeds."""
        name = f"{self.metric}{SEEDS}"
        return replace(self, seed=None, metric=name, **_parts(name, m))

    @property
    def measure(self) -> Measure:
        ci, kappa_ci = _pair(self.ci_low, self.ci_high), _pair(self.kappa_low, self.kappa_high)
        return Measure(self.value, self.null, self.ceiling, ci, self.p, self.kappa, self.n, kappa_ci, self.reasons)


def _parts(metric: str, m: Measure) -> dict[str, Any]:
    low, high = m.ci or (None, None)
    kappa_low, kappa_high = m.kappa_ci or (None, None)
    ends = {"ci_low": low, "ci_high": high, "kappa_low": kappa_low, "kappa_high": kappa_high}
    same = {name: getattr(m, name) for name in ("value", "null", "ceiling", "p", "kappa", "n", "reason", "reasons")}
    return same | ends | {"lacks": lacking(metric, m)}


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def seed_rows(rows: Sequence[DivergenceRow]) -> list[DivergenceRow]:
    """A row over seeds for every metric that a dictionary enters, where two seeds or more were measured. From the rows alone: the leaves'
    measures stay as they are stored when a seed is added.
    """
    shapes: dict[tuple, dict[tuple, dict[int, DivergenceRow]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        if r.seed is not None and not r.metric.endswith(BETWEEN) and pooled(r.metric):
            shapes[r.metric, r.d_sae, r.k, r.architecture][r.adapter, r.layer, r.reference][r.seed] = r
    out = []
    for (name, *_), places in shapes.items():
        cells = [Cell(place, {seed: by_seed[seed].measure for seed in sorted(by_seed)}) for place, by_seed in places.items()]
        out += [places[place][min(places[place])].over_seeds(m) for place, m in over_seeds(name, cells).items()]
    return out


def corrected(rows: Sequence[DivergenceRow]) -> list[DivergenceRow]:
    """The rows with p adjusted over layers and adapters, separately for every metric and shape of dictionary."""
    families: dict[tuple, list[int]] = defaultdict(list)
    for i, r in enumerate(rows):
        if r.p is not None:
            families[r.metric, r.d_sae, r.k, r.architecture, r.seed].append(i)
    out = list(rows)
    for members in families.values():
        adjusted = false_discovery_control([rows[i].p or 0.0 for i in members])
        for i, p in zip(members, adjusted, strict=True):
            out[i] = replace(rows[i], p=float(p))
    return out


def write_table(storage: Storage, rows: Sequence[DivergenceRow]) -> None:
    """divergence.parquet and divergence.json below the storage root."""
    types = {"str": pa.string(), "int": pa.int64(), "int | None": pa.int64(), "float | None": pa.float64()}
    annotations = {f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type)) for f in fields(DivergenceRow)}
    schema = pa.schema([(name, types.get(kind, pa.string())) for name, kind in annotations.items() if name != "reasons"])
    records = [asdict(r) for r in rows]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
    storage.write_bytes(JSON, json.dumps(records, indent=1, allow_nan=False).encode())


def read_table(storage: Storage) -> list[DivergenceRow]:
    """What `write_table` wrote."""
    records = json.loads(storage.read_bytes(JSON))
    return [DivergenceRow(**record | {"reasons": tuple(map(tuple, record["reasons"]))}) for record in records]


def leaf_figures(rows: Iterable[DivergenceRow], adapter: str) -> list[LeafFigures]:
    """The rows of one adapter as the verdict reads them, those over seeds beside each seed's own; figures between adapters are left out."""
    found: dict[DictionaryId, dict[str, Measure]] = defaultdict(dict)
    together: dict[tuple, dict[str, Measure]] = defaultdict(dict)
    for r in rows:
        if r.adapter == adapter and not r.metric.endswith(BETWEEN):
            cell = (Place(r.adapter, r.layer), Shape(r.d_sae, r.k, r.architecture))
            if r.seed is None:
                together[cell][r.metric] = r.measure
            else:
                found[DictionaryId(*cell[0], *cell[1], r.seed)][r.metric] = r.measure
    order = sorted(found, key=lambda one: (one.layer, one.d_sae, one.k, one.seed, one.architecture))
    return [LeafFigures(**vars(one), measures=found[one] | together[one.cell]) for one in order]
