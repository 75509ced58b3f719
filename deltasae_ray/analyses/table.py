"""The table: one row per adapter, layer, dictionary and metric. Nothing in it is NaN; what is undefined is
null, with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import false_discovery_control

from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.verdict import LeafFigures
from deltasae_ray.errors import StorageError
from deltasae_ray.metrics.absent_parts import lacking
from deltasae_ray.metrics.catalogue import BETWEEN, FigureName, parse_name
from deltasae_ray.metrics.coding.variants import Variant
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.over_seeds import Cell, over_seeds, pooled
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.storage import Storage

PARQUET, JSON = "divergence.parquet", "divergence.json"


COLUMNS = {
    **dict.fromkeys(("adapter",), pa.string()),
    **dict.fromkeys(("rank", "adapter_seed", "layer", "d_sae", "k"), pa.int64()),
    "architecture": pa.string(),
    "seed": pa.int64(),
    **dict.fromkeys(("reference", "metric", "variant", "corpus"), pa.string()),
    "over_seeds": pa.bool_(),
    **dict.fromkeys(("value", "null", "ceiling", "ci_low", "ci_high", "p", "kappa"), pa.float64()),
    "n": pa.int64(),
    "reason": pa.string(),
    **dict.fromkeys(("kappa_low", "kappa_high"), pa.float64()),
    "lacks": pa.string(),
}
"""Columns of divergence.parquet, each a field or a property of a row."""


@dataclass(frozen=True)
class DivergenceRow(DictionaryId):
    """One figure of one dictionary, or of all its seeds.

    Over seeds, `seed` is that of the first, and null in divergence.parquet.
    """

    rank: int | None
    adapter_seed: int | None
    reference: str
    """What it is held against: the reference's name, or another adapter's for figures between adapters."""
    metric: str
    """Name in the catalogue of metrics."""
    measure: Measure
    """The figure, with p adjusted over layers and adapters (Benjamini-Hochberg, for positively dependent
    tests)."""
    variant: Variant = ""
    over_seeds: bool = False
    """The mean over all seeds of the dictionary."""
    corpus: str = ""
    """The text it is of; empty for all together."""

    @classmethod
    def of(
        cls, leaf: LeafSpec, name: str, m: Measure, *, reference: str | None = None, corpus: str = ""
    ) -> "DivergenceRow":
        """The row of a figure by its whole name, such as `missing_share_no_top3`."""
        known = dict(
            rank=leaf.rank,
            adapter_seed=leaf.adapter_seed,
            reference=reference or leaf.reference_name,
            corpus=corpus,
        )
        return cls(**vars(leaf.identity), **known, **parse_name(name)._asdict(), measure=m)

    @property
    def figure(self) -> str:
        """Metric and variant in one name."""
        return FigureName(self.metric, self.variant).name

    @property
    def name(self) -> str:
        """Metric, variant and `_seeds` in one name, as stored measures and MLflow have it."""
        return FigureName(self.metric, self.variant, self.over_seeds).name

    @property
    def value(self) -> float | None:
        return self.measure.value

    @property
    def null(self) -> float | None:
        return self.measure.null

    @property
    def ceiling(self) -> float | None:
        return self.measure.ceiling

    @property
    def ci_low(self) -> float | None:
        return self.measure.ci[0] if self.measure.ci else None

    @property
    def ci_high(self) -> float | None:
        return self.measure.ci[1] if self.measure.ci else None

    @property
    def p(self) -> float | None:
        return self.measure.p

    @property
    def kappa(self) -> float | None:
        return self.measure.kappa

    @property
    def kappa_low(self) -> float | None:
        return self.measure.kappa_ci[0] if self.measure.kappa_ci else None

    @property
    def kappa_high(self) -> float | None:
        return self.measure.kappa_ci[1] if self.measure.kappa_ci else None

    @property
    def n(self) -> int:
        return self.measure.n

    @property
    def reason(self) -> str:
        return self.measure.reason

    @property
    def lacks(self) -> str:
        """Which of null, ceiling, kappa and p is missing, and why."""
        return lacking(self.name, self.measure)

    @property
    def flat(self) -> dict[str, Any]:
        """Column → value, as divergence.parquet has it."""
        return {name: getattr(self, name) for name in COLUMNS} | ({"seed": None} if self.over_seeds else {})


def seed_rows(rows: Sequence[DivergenceRow]) -> list[DivergenceRow]:
    """A row over seeds for every metric that a dictionary enters, where two seeds or more were measured. From
    the rows alone: the leaves' measures stay as they are stored when a seed is added.
    """
    alike: dict[tuple, dict[tuple, dict[int, DivergenceRow]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        if not r.over_seeds and r.metric not in BETWEEN and pooled(r.name):
            alike[r.name, r.shape][*r.place, r.reference][r.seed] = r
    out = []
    for (name, _), places in alike.items():
        cells = [
            Cell(place, {seed: by_seed[seed].measure for seed in sorted(by_seed)})
            for place, by_seed in places.items()
        ]
        first = {place: by_seed[min(by_seed)] for place, by_seed in places.items()}
        out += [
            replace(first[place], measure=m, over_seeds=True) for place, m in over_seeds(name, cells).items()
        ]
    return out


def corrected(rows: Sequence[DivergenceRow]) -> list[DivergenceRow]:
    """The rows with p adjusted over layers and adapters, separately for every metric and shape of
    dictionary."""
    families: dict[tuple, list[int]] = defaultdict(list)
    for i, r in enumerate(rows):
        if r.p is not None:
            families[r.name, r.shape, None if r.over_seeds else r.seed].append(i)
    out = list(rows)
    for members in families.values():
        adjusted = false_discovery_control([rows[i].p or 0.0 for i in members])
        for i, p in zip(members, adjusted, strict=True):
            out[i] = replace(rows[i], measure=replace(rows[i].measure, p=float(p)))
    return out


def write_table(storage: Storage, rows: Sequence[DivergenceRow]) -> None:
    """Writes divergence.parquet, flat, and divergence.json, which holds each measure with its reasons part by
    part."""
    sink = BytesIO()
    pq.write_table(
        pa.Table.from_pylist([r.flat for r in rows], schema=pa.schema(list(COLUMNS.items()))), sink
    )
    storage.write_bytes(PARQUET, sink.getvalue())
    storage.write_bytes(JSON, json.dumps([asdict(r) for r in rows], indent=1, allow_nan=False).encode())


def read_table(storage: Storage) -> list[DivergenceRow]:
    """Reads what `write_table` wrote.

    Raises:
        StorageError: divergence.json is damaged, or of another version.
    """
    try:
        return msgspec.json.decode(storage.read_bytes(JSON), type=list[DivergenceRow])
    except (msgspec.DecodeError, AssertionError) as e:  # a measure asserts that its parts belong together
        raise StorageError(
            f"{storage.path(JSON)} holds no table of this version ({e}): run the report stage again"
        ) from e


def leaf_figures(rows: Iterable[DivergenceRow], adapter: str) -> list[LeafFigures]:
    """The rows of one adapter as the verdict reads them, those over seeds beside each seed's own; figures
    between adapters and of single texts are left out."""
    figures: dict[DictionaryId, dict[str, Measure]] = defaultdict(dict)
    together: dict[tuple, dict[str, Measure]] = defaultdict(dict)
    for r in rows:
        if r.adapter == adapter and r.metric not in BETWEEN and not r.corpus:
            (together[r.cell] if r.over_seeds else figures[r.identity])[r.name] = r.measure
    order = sorted(figures, key=lambda one: (one.layer, one.d_sae, one.k, one.seed, one.architecture))
    return [LeafFigures(**vars(one), measures=figures[one] | together[one.cell]) for one in order]
