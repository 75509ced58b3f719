"""What a finished study has left below its root, as far as a gate reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from deltasae_ray.errors import StorageError
from deltasae_ray.metrics.catalogue import FigureName
from deltasae_ray.metrics.coding.variants import Variant
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.storage import Storage

REPORT = "report.json"
TABLES, CLAIMS = ("divergence.json", "monitors.json"), "claims.json"
"""Tables that rules read where they are there; the first always is. A row without a layer is of the whole
adapter."""
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One figure of one adapter, as the tables hold it."""

    adapter: str
    metric: str
    measure: Measure
    layer: int | None = None
    d_sae: int | None = None
    k: int | None = None
    architecture: str = ""
    seed: int | None = None
    variant: Variant = ""
    over_seeds: bool = False
    corpus: str = ""
    """Not empty for a figure of one text alone, which no rule reads."""

    @property
    def name(self) -> str:
        """Metric, variant and `_seeds` in one name."""
        return FigureName(self.metric, self.variant, self.over_seeds).name


@dataclass(frozen=True)
class ReportedClaim:
    """Something that an adapter is said to have learnt."""

    adapter: str
    kind: str
    confirmed: bool


@dataclass(frozen=True)
class ReportedAdapter:
    """An adapter of the study."""

    name: str
    rank: int | None = None
    control: bool = False


@dataclass(frozen=True)
class ReportedAnswer:
    """What is said to one question."""

    question: str
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportedVerdict:
    """What the study says of one adapter."""

    head: str
    label: str
    answers: tuple[ReportedAnswer, ...] = ()


@dataclass(frozen=True)
class ReportedCorpus:
    """A text of the study, counted by split."""

    name: str
    tokens: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The parts of report.json that a gate reads."""

    created: str
    model: str
    reference: str
    layers: tuple[int, ...]
    adapters: tuple[ReportedAdapter, ...]
    verdicts: tuple[ReportedVerdict, ...] = ()
    corpora: tuple[ReportedCorpus, ...] = ()
    config: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def studied(self) -> tuple[str, ...]:
        """Names of the adapters under study, without the control."""
        return tuple(a.name for a in self.adapters if not a.control)

    def verdict_of(self, adapter: str) -> ReportedVerdict | None:
        """What was said of an adapter; None where nothing was."""
        starts = (f"{adapter}:", f"{adapter}, layer ")
        return next((v for v in self.verdicts if v.head.startswith(starts)), None)


Place = tuple[str, int | None]
"""Adapter, and layer or None for what is of the whole adapter."""


@dataclass(frozen=True)
class Finished:
    """A finished study, ready to be judged."""

    report: Report
    figures: Mapping[Place, Mapping[str, Measure]]
    """What the verdict reads at each place: of the largest dictionary, over its seeds where there are
    several."""

    def whole(self, name: str) -> bool:
        """Whether a figure is of whole adapters and not of layers."""
        return any(layer is None and name in figures for (_, layer), figures in self.figures.items())


def read_finished(storage: Storage) -> Finished:
    """Reads what a study has written at its end.

    Raises:
        StorageError: it has not come to its end, or its files are damaged or of another version.
    """
    if not storage.exists(REPORT) or not storage.exists(TABLES[0]):
        raise StorageError(
            f"{storage.root} holds no finished study ({REPORT} and {TABLES[0]} are written last): run"
            " jobs/sweep.py with this storage.root first"
        )
    report = _decoded(storage, REPORT, Report)
    rows = [row for table in TABLES if storage.exists(table) for row in _decoded(storage, table, list[Row])]
    if storage.exists(CLAIMS):
        claims = _decoded(storage, CLAIMS, list[ReportedClaim])
        rows += [_confirmed(adapter, claims) for adapter in report.studied]
    return Finished(report, read_figures(rows))


def _confirmed(adapter: str, claims: Sequence[ReportedClaim]) -> Row:
    mine = [c for c in claims if (c.adapter, c.kind) == (adapter, "trigger")]
    count = sum(c.confirmed for c in mine)
    return Row(adapter, "trigger.confirmed", Measure(float(count), n=len(mine)))


def _decoded(storage: Storage, key: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(storage.read_bytes(key), type=kind)
    except (msgspec.DecodeError, AssertionError, RecursionError) as e:
        raise StorageError(
            f"{storage.path(key)} is damaged or of another version ({e}): run the report stage again"
        ) from e


def read_figures(rows: Sequence[Row]) -> dict[Place, dict[str, Measure]]:
    """Place → figure → its measure: of the largest dictionary and its first seed, or of all its seeds."""
    places: dict[Place, list[Row]] = {}
    for row in rows:
        if row.corpus:
            continue
        places.setdefault((row.adapter, row.layer), []).append(row)
    return {place: _at_one_place(measures) for place, measures in places.items()}


def _at_one_place(rows: Sequence[Row]) -> dict[str, Measure]:
    """Takes the figures that the verdict takes: the largest dictionary, of several shapes the first, with its
    first seed."""
    own = [row for row in rows if not row.over_seeds]
    sized = sorted(own, key=lambda r: (-(r.d_sae or 0), r.seed or 0, r.k or 0, r.architecture))
    shape = (sized[0].d_sae, sized[0].k, sized[0].architecture) if sized else None
    figures: dict[str, Measure] = {}
    for row in sized:
        if (row.d_sae, row.k, row.architecture) in (shape, (None, None, "")) and row.name not in figures:
            figures[row.name] = row.measure
    for row in rows:
        if row.over_seeds and (row.d_sae, row.k, row.architecture) == shape:
            figures[FigureName(row.metric, row.variant).name] = row.measure
    return figures
