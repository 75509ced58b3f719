"""How adapters look in every figure, and how one row of the table is drawn and spoken of."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.report import svg
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.wording import figure, interval


@dataclass(frozen=True)
class LegendEntry:
    """A name in a chart's legend, with its mark."""

    label: str
    swatch: Markup


@dataclass(frozen=True)
class Style:
    """Colour by rank, shape by training seed; a control is grey."""

    css: dict[str, str]
    shape: dict[str, str]

    @classmethod
    def of(cls, inputs: ReportInputs, seen: Sequence[str]) -> "Style":
        facts = {a.name: a for a in inputs.adapters}
        ranks = sorted({a.rank for a in inputs.adapters if not a.control})
        css, shape, used = {}, {}, dict.fromkeys(ranks, 0)
        for name in in_order(inputs, seen):
            known = facts.get(name)
            if known is None or known.control:
                css[name], shape[name] = "sc", "diamond"
                continue
            css[name] = f"s{ranks.index(known.rank) % 6}"
            shape[name] = svg.SHAPES[used[known.rank] % len(svg.SHAPES)]
            used[known.rank] += 1
        return cls(css, shape)

    def legend(self) -> list[LegendEntry]:
        return [
            LegendEntry(name, swatch(svg.mark(9, 7, self.shape[name], f"dot {self.css[name]}")))
            for name in self.css
        ]


@dataclass(frozen=True)
class Cell:
    """One row in a panel."""

    row: DivergenceRow
    css: str
    shape: str
    lane: int
    """Its place within the group of a layer."""


def point(cell: Cell, x: float, slot: float, y: svg.Axis) -> list[Markup]:
    """A row as a mark with its interval, over its null and ceiling; undefined is a sign at the foot of the
    panel."""
    row, css = cell.row, cell.css
    parts = []
    if row.null is not None:
        parts.append(svg.bar(x - slot / 2, y(row.null) - 4, slot, 8, "nullband", f"null {figure(row.null)}"))
    if row.ceiling is not None:
        parts.append(svg.line(x - 0.42 * slot, y(row.ceiling), x + 0.42 * slot, y(row.ceiling), "ceiling"))
    if row.value is None:
        return [
            *parts,
            svg.words(x, svg.HEIGHT - svg.BOTTOM - 5, "∅", f"undefined {'small' if slot < 12 else ''} {css}"),
        ]
    if row.ci_low is not None and row.ci_high is not None:
        parts.append(svg.line(x, y(row.ci_low), x, y(row.ci_high), f"whisker {css}"))
    size = min(4.2, max(2.2, 0.42 * slot))
    return [
        *parts,
        svg.mark(
            x, y(row.value), cell.shape, f"dot {'tiny ' if size < 3 else ''}{css}", spoken(row), size=size
        ),
    ]


def spoken(row: DivergenceRow) -> str:
    """One row as words, for tooltips and screen readers."""
    where = f"{row.adapter}, layer {row.layer}"
    if row.value is None:
        return f"{where}: undefined, {row.reason}"
    sure = f" {interval(row.ci_low, row.ci_high)}" if row.ci_low is not None else ""
    return f"{where}: {figure(row.value)}{sure}" + (
        f", null {figure(row.null)}" if row.null is not None else ""
    )


def in_order(inputs: ReportInputs, names: Sequence[str]) -> list[str]:
    """Adapters by rank, then seed; controls and unknown names last."""
    facts = {a.name: (a.control, a.rank, a.seed or 0) for a in inputs.adapters}
    return sorted(dict.fromkeys(names), key=lambda n: (*facts.get(n, (True, 1 << 30, 0)), n))


def swatch(drawn: Markup) -> Markup:
    return Markup('<svg viewBox="0 0 18 14" class="swatch" aria-hidden="true">{}</svg>').format(drawn)
