"""Panels of lines: a measure over k with its interval and null, and how dictionaries learned."""

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.report import svg
from deltasae_ray.report.inputs import Curve
from deltasae_ray.report.marks import LegendEntry, Style, spoken, swatch

DASHES = ("", "dash", "dots")


def line_panels(
    rows: Mapping[DivergenceRow, int], x_label: str, y: svg.Axis, style: Style, label: str
) -> list[Markup]:
    """A panel per layer of rows at their places on a logarithmic x axis."""
    panels = []
    for layer in sorted({r.layer for r in rows}):
        here = {r: x for r, x in rows.items() if r.layer == layer}
        x = svg.x_axis(min(here.values()), max(here.values()), log=True)
        parts = _null_band(here, x, y)
        for adapter in style.css:
            found = sorted(
                ((r, at) for r, at in here.items() if r.adapter == adapter and r.value is not None),
                key=lambda item: item[1],
            )
            parts += (
                _line(found, x, y, style.css[adapter], style.shape[adapter])
                if found
                else _nothing(style, adapter)
            )
        ticks = [(x(v), svg.number(v)) for v in sorted(set(here.values()))]
        said = "; ".join(f"k {at:g}, {spoken(r)}" for r, at in here.items())
        panels.append(
            svg.frame(f"layer {layer}", y, x_label, ticks, f"{label}, layer {layer}. {said}", parts)
        )
    return panels


def learning_panels(
    curves: Sequence[Curve],
    style: Style,
    name: str,
    say: Callable[[float], str],
    x_label: str = "optimizer step",
) -> tuple[list[Markup], list[LegendEntry]]:
    """A panel per layer with a line per dictionary, and what the dashes mean. `say` puts a value of theirs
    into words."""
    labels = list(dict.fromkeys(c.label for c in curves))
    values = [p.y for c in curves for p in c.points]
    panels = []
    for layer in sorted({c.layer for c in curves}):
        here = [c for c in curves if c.layer == layer and c.points]
        x = svg.x_axis(min(c.points[0].x for c in here), max(c.points[-1].x for c in here))
        y = svg.y_axis(*svg.padded(values, include=(0.0,)))
        told = [f"{c.adapter} {c.label} seed {c.seed} ends at {say(c.points[-1].y)}" for c in here]
        parts = [
            svg.path(
                [(x(p.x), y(p.y)) for p in c.points],
                f"curve {style.css[c.adapter]} {_dash(labels, c.label)}",
                title,
            )
            for c, title in zip(here, told, strict=True)
        ]
        ticks = [(x(v), svg.number(v)) for v in x.ticks()]
        panels.append(
            svg.frame(f"layer {layer}", y, x_label, ticks, f"{name}, layer {layer}. {'; '.join(told)}", parts)
        )
    legend = [
        LegendEntry(label, swatch(svg.line(0, 7, 18, 7, f"curve ink {_dash(labels, label)}")))
        for label in labels
        if label
    ]
    return panels, legend if len(legend) > 1 else []


def _dash(labels: Sequence[str], label: str) -> str:
    return DASHES[labels.index(label) % len(DASHES)]


def _line(
    found: Sequence[tuple[DivergenceRow, int]], x: svg.Axis, y: svg.Axis, css: str, shape: str
) -> list[Markup]:
    sure = [(at, r.ci_low, r.ci_high) for r, at in found if r.ci_low is not None and r.ci_high is not None]
    parts = []
    if len(sure) > 1:
        parts.append(
            svg.band(
                [(x(at), y(high)) for at, _, high in sure],
                [(x(at), y(low)) for at, low, _ in sure],
                f"interval {css}",
            )
        )
    parts.append(svg.path([(x(at), y(r.value or 0.0)) for r, at in found], f"curve {css}"))
    return [
        *parts,
        *(
            svg.mark(x(at), y(r.value or 0.0), shape, f"dot {css}", f"k {at:g}, {spoken(r)}", size=3.4)
            for r, at in found
        ),
    ]


def _nothing(style: Style, adapter: str) -> list[Markup]:
    """The sign of undefined, at the foot of the panel."""
    lane = list(style.css).index(adapter)
    return [
        svg.words(
            svg.LEFT + 20 + 18 * lane, svg.HEIGHT - svg.BOTTOM - 8, "∅", f"undefined {style.css[adapter]}"
        )
    ]


def _null_band(rows: Mapping[DivergenceRow, int], x: svg.Axis, y: svg.Axis) -> list[Markup]:
    """From the lowest to the highest null of the rows at each place, and never thinner than can be seen."""
    nulls: dict[int, list[float]] = {}
    for r, at in rows.items():
        if r.null is not None:
            nulls.setdefault(at, []).append(r.null)
    places = sorted(nulls)
    upper = [(x(at), y(max(nulls[at])) - 3.5) for at in places]
    lower = [(x(at), y(min(nulls[at])) + 3.5) for at in places]
    return [svg.band(upper, lower, "nullband")] if places else []
