"""What the page's scripts read: plain typed values, embedded as JSON."""

from collections.abc import Sequence

import msgspec

from deltasae_ray.analyses.audit.table import STRENGTHS
from deltasae_ray.metrics.catalogue import BETWEEN, directions
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.report.glossary import Entry, glossary, sentence
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.latent_rows import CONTEXTS, FIGURES, LatentRow, OnPage, latent_rows
from deltasae_ray.report.notes import UNDEFINED, chance_notes, standing_words
from deltasae_ray.report.seeds import leading_rows, seeds_notes
from deltasae_ray.report.wording import catalogued, describe

DRAWN = (
    "visible_share",
    "not_visible_share",
    "missing_share",
    "monitor_r2",
    "max_cosine_weighted",
    "coactivation",
    "repeat_share",
    "fvu_delta",
    "loss_recovered",
)
"""Figures that the study's chart offers first."""
BESIDE = {"_random_adapter": "random adapter", "_base_control": "base control"}
"""Ending of a control's name → what the chart calls it."""


class Point(msgspec.Struct):
    """A figure with all that it is read against."""

    value: float | None
    low: float | None
    high: float | None
    null: float | None
    ceiling: float | None
    p: float | None
    kappa: float | None
    n: int
    reason: str


class MeasureRow(msgspec.Struct):
    """One figure of one dictionary, or of all its seeds."""

    metric: str
    """Its whole name without `_seeds`."""
    adapter: str
    against: str
    """The other adapter, for figures between two; else empty."""
    layer: int
    variant: str
    """As in divergence.parquet."""
    size: str
    """Such as "512"; with k and architecture where those differ."""
    seed: str
    """"all" over seeds."""
    leading: bool
    """Of the largest dictionaries, over seeds where there are several: what is shown first."""
    standing: str
    """How it stands to its null, in words."""
    point: Point


class MonitorLine(msgspec.Struct):
    """One figure of one of the user's monitors."""

    adapter: str
    monitor: str
    hookpoint: str
    figure: str
    """Last part of its name, such as "auroc_drop"."""
    standing: str
    point: Point


class Line(msgspec.Struct):
    """One line of a figure."""

    chart: str
    adapter: str
    layer: int
    label: str
    points: list[tuple[float, float]]


class Chart(msgspec.Struct):
    """A figure that the study's chart can draw."""

    metric: str
    title: str
    notes: list[str]
    undefined: list[str]
    """Which places have none, and why."""


class PageData(msgspec.Struct):
    """All of it but the latents, which the page reads only when they are asked for."""

    reference: str
    adapters: list[str]
    layers: list[int]
    charts: list[Chart]
    measures: list[MeasureRow]
    monitors: list[MonitorLine]
    lines: list[Line]
    shown: list[OnPage]
    strengths: tuple[float, ...]
    """Of steered texts."""
    glossary: dict[str, Entry]
    limits: dict[str, int]


def page_data(inputs: ReportInputs) -> tuple[PageData, list[LatentRow]]:
    """Gathers it, and the rows of latents; the same inputs give the same data."""
    latents, shown = latent_rows(inputs)
    measures = _measures(inputs)
    data = PageData(
        reference=inputs.reference,
        adapters=[v.adapter for v in inputs.verdicts],
        layers=list(inputs.layers),
        charts=_charts(inputs),
        measures=measures,
        monitors=_monitors(inputs),
        lines=[*_curves(inputs), *_angles(inputs)],
        shown=shown,
        strengths=STRENGTHS,
        glossary=glossary(inputs, {row.metric for row in measures}),
        limits={"figures": FIGURES, "contexts": CONTEXTS},
    )
    return data, latents


def point_of(m: Measure) -> Point:
    low, high = m.ci or (None, None)
    short = [_short(x) for x in (m.value, low, high, m.null, m.ceiling, m.p, m.kappa)]
    return Point(*short, n=m.n, reason=m.reason)


def _measures(inputs: ReportInputs) -> list[MeasureRow]:
    rows = inputs.rows
    leading = set(map(id, leading_rows(rows, {r.name for r in rows})))
    largest = _largest(inputs)
    several_k, several = len({r.k for r in rows}) > 1, len({r.architecture for r in rows}) > 1
    first = min((r.seed or 0 for r in rows), default=0)
    measures = []
    for r in rows:
        size = f"{r.d_sae:,}" if r.d_sae else "–"
        size += (f", k {r.k}" if several_k else "") + (f", {r.architecture}" if several else "")
        leads = (
            id(r) in leading and r.d_sae == largest[r.adapter] and (r.over_seeds or (r.seed or 0) == first)
        )
        measures.append(
            MeasureRow(
                metric=r.figure,
                adapter=r.adapter,
                against=r.reference if r.metric in BETWEEN else "",
                layer=r.layer,
                variant=r.variant,
                size=size,
                seed="all" if r.over_seeds else str(r.seed),
                leading=leads,
                standing=standing_words(r.name, r.measure),
                point=point_of(r.measure),
            )
        )
    first_ones = {name: i for i, name in enumerate(DRAWN)}
    measures.sort(
        key=lambda row: (first_ones.get(row.metric, len(DRAWN)), directions(row.metric) is not None)
    )
    return measures


def _largest(inputs: ReportInputs) -> dict[str, int | None]:
    """Adapter → latents of its largest dictionaries."""
    largest: dict[str, int | None] = {}
    for r in inputs.rows:
        largest[r.adapter] = max(largest.get(r.adapter) or 0, r.d_sae or 0) or None
    return largest


def _charts(inputs: ReportInputs) -> list[Chart]:
    """What can be drawn by layer: the leading figures first, then all others that are no control."""
    largest = _largest(inputs)
    names = list(dict.fromkeys(r.figure for r in inputs.rows if r.metric not in BETWEEN))
    first = [name for name in DRAWN if name in names]
    rest = sorted(n for n in names if n not in first and not n.endswith(tuple(BESIDE)))
    charts = []
    for name in (*first, *rest):
        drawn = [r for r in leading_rows(inputs.rows, (name,)) if r.d_sae == largest[r.adapter]]
        notes = chance_notes(drawn, inputs, name) if name in first else []
        undefined = [n for n in notes if n.startswith(UNDEFINED)]
        shown_notes = [n for n in notes if n not in undefined] if catalogued(name).null else []
        charts.append(
            Chart(
                name, sentence(describe(name, inputs).label), [*shown_notes, *seeds_notes(drawn)], undefined
            )
        )
    return charts


def _monitors(inputs: ReportInputs) -> list[MonitorLine]:
    monitors = []
    for row in inputs.monitors:
        _, name, figure = row.metric.split(".")
        standing = standing_words(row.metric, row.measure)
        monitors.append(
            MonitorLine(row.adapter, name, row.hookpoint, figure, standing, point_of(row.measure))
        )
    return monitors


def _curves(inputs: ReportInputs) -> list[Line]:
    return [
        Line(
            c.figure, c.adapter, c.layer, f"{c.label}, seed {c.seed}", _points([(p.x, p.y) for p in c.points])
        )
        for c in inputs.curves
        if c.points
    ]


def _angles(inputs: ReportInputs) -> list[Line]:
    """Angles over k, and their nulls."""
    lines: dict[tuple[str, int, str], dict[float, float]] = {}
    for r in inputs.rows:
        if catalogued(r.name).name != "angle_pca_k{k}" or (k := directions(r.name)) is None:
            continue
        for label, value in (("angle", r.value), ("null", r.null)):
            if value is not None:
                lines.setdefault((r.adapter, r.layer, label), {})[k] = value
    return [
        Line("angle_pca", adapter, layer, label, _points(sorted(angles.items())))
        for (adapter, layer, label), angles in lines.items()
        if len(angles) > 1
    ]


def _points(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(_short(x) or 0.0, _short(y) or 0.0) for x, y in pairs]


def _short(value: float | None) -> float | None:
    """The value with four significant digits."""
    return None if value is None else float(f"{value:.4g}")
