"""The figures' grammar: Vega-Lite charts by Altair, compiled to Vega for the page and drawn to files."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from deltasae_ray.report.page_data import BESIDE, Line, MeasureRow, PageData

TEMPLATES = Path(__file__).parent / "templates"
SERIES = 6
"""Colours of adapters; they come again after so many."""
ROWS = "rows"
"""Name of the charts' data."""
KINDS = ("adapter", *BESIDE.values())
SHAPES = ("circle", "diamond", "square")
KEY = "● adapter  ◆ random adapter  ■ base control; line: 95 % interval; grey: null; black: ceiling"
BAND = alt.ExprRef("0.8 * bandwidth('x')")
"""Width of what stands beside an adapter's points."""
DASHES = ([1, 0], [6, 3], [2, 3])
FILES = ("visible_share", "missing_share", "learning", "calibration")
"""What is drawn to files too: figures by layer, then lines."""

Spec = dict[str, Any]


@cache
def specs() -> dict[str, Spec]:
    """Vega of one panel of each kind, without data; colours are written @name, after the style sheet's."""
    drawn = {"layers": by_layer(), "lines": lines("linear"), "log_lines": lines("log")}
    given = {name: chart.properties(data=alt.NamedData(name=ROWS)) for name, chart in drawn.items()}
    return {
        name: vl_convert.vegalite_to_vega(_styled(chart).to_dict(validate=False))
        for name, chart in given.items()
    }


def by_layer(lowest: float = 0.0, highest: float = 1.0) -> Any:
    """Adapters beside each other: the null as a grey band, the ceiling as a tick, value and interval."""
    low, high = alt.param(name="low", value=lowest), alt.param(name="high", value=highest)
    scale = alt.Scale(domain=[alt.ExprRef("low"), alt.ExprRef("high")], nice=False)
    x = alt.X("lane:N", sort=alt.EncodingSortField("at"), axis=alt.Axis(title=None, labelAngle=0))
    color = alt.Color("series:N", scale=_colours(), legend=None)
    data = alt.Chart()
    y, grid = alt.Y("value:Q", scale=scale, title=None), alt.Axis(title=None, tickCount=5)
    null = data.mark_tick(thickness=7, size=BAND, color="@null", opacity=0.55, aria=False).encode(
        x=x, y=alt.Y("null:Q", scale=scale, axis=grid)
    )
    ceiling = data.mark_tick(thickness=2, size=BAND, color="@ink", aria=False).encode(
        x=x, y=alt.Y("ceiling:Q", scale=scale)
    )
    shift = alt.XOffset("kind:N", sort=list(KINDS))
    interval = data.mark_rule(strokeWidth=2, aria=False).encode(
        x=x, xOffset=shift, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color
    )
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=list(KINDS), range=list(SHAPES)), legend=None)
    points = data.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, xOffset=shift, y=y, color=color, shape=shape, tooltip="told:N"
    )
    unknown = (
        data.transform_filter("datum.value === null")
        .mark_text(color="@muted", fontSize=12)
        .encode(x=x, xOffset=shift, y=alt.value(10), text=alt.value("∅"), tooltip="told:N")
    )
    chart = alt.layer(null, ceiling, interval, points, unknown).add_params(low, high)
    return chart.properties(width=270, height=170)


def lines(x_scale: str) -> Any:
    """A line for each adapter and label."""
    data = alt.Chart()
    scale = alt.Scale(type=x_scale, nice=False, **({"base": 2} if x_scale == "log" else {}))  # type: ignore[arg-type]
    curve = data.mark_line(strokeWidth=1.8).encode(
        x=alt.X("x:Q", scale=scale, axis=alt.Axis(title=None, tickCount=4, grid=False)),
        y=alt.Y("y:Q", axis=alt.Axis(title=None, tickCount=5)),
        color=alt.Color("series:N", scale=_colours(), legend=None),
        strokeDash=alt.StrokeDash(
            "dash:N", scale=alt.Scale(domain=[0, 1, 2], range=list(DASHES)), legend=None
        ),
        detail="label:N",
        tooltip="label:N",
    )
    return alt.layer(curve).properties(width=270, height=170)


def drawn_files(data: PageData) -> dict[str, bytes]:
    """Name → bytes of the study's figures, each as SVG and as PNG; those without data are left out."""
    files: dict[str, bytes] = {}
    for name in FILES:
        spec = study_spec(data, name)
        if spec is not None:
            files[f"figures/{name}.svg"] = vl_convert.vegalite_to_svg(spec).encode()
            files[f"figures/{name}.png"] = vl_convert.vegalite_to_png(spec, scale=2)
    return files


def study_spec(data: PageData, name: str) -> Spec | None:
    """Vega-Lite of one figure of the study, a panel for each layer; None where nothing of it is known."""
    values = layer_values(data, name) or line_values(data, name)
    if not any(v.get("value") is not None or v.get("y") is not None for v in values):
        return None
    panel = lines("linear") if "y" in values[0] else by_layer(*_extent(values))
    chart = panel.facet(
        column=alt.Column("layer:O", title="layer", header=alt.Header(labelFontWeight="bold")),
        data=alt.Data(values=values, name=ROWS),
    )
    titled = chart.properties(title=alt.TitleParams(_title(data, name), subtitle=KEY, anchor="start"))
    return coloured(_styled(titled).to_dict(validate=False), palette())


def layer_values(data: PageData, metric: str) -> list[Spec]:
    """Rows of a chart by layer: the leading rows of a figure, with its controls beside them."""
    kinds = {metric: KINDS[0]} | {f"{metric}{ending}": kind for ending, kind in BESIDE.items()}
    return [
        _value(row, kinds[row.metric], data.adapters)
        for row in data.measures
        if row.leading and row.metric in kinds
    ]


def line_values(data: PageData, chart: str) -> list[Spec]:
    """Points of all lines of a chart."""
    lines: list[Line] = [line for line in data.lines if line.chart == chart]
    labels = list(dict.fromkeys(line.label.split(",")[0] for line in lines))
    return [
        {
            "x": x,
            "y": y,
            "layer": line.layer,
            "label": f"{line.adapter}, {line.label}",
            "series": data.adapters.index(line.adapter) % SERIES if line.adapter in data.adapters else 0,
            "dash": labels.index(line.label.split(",")[0]) % len(DASHES),
        }
        for line in lines
        for x, y in line.points
    ]


def coloured(spec: Spec, colours: Mapping[str, str]) -> Spec:
    """The chart with the colours that its names stand for."""
    return json.loads(re.sub(r'"@(\w+)"', lambda match: f'"{colours[match[1]]}"', json.dumps(spec)))


def palette() -> dict[str, str]:
    """Name → colour of the style sheet's light scheme."""
    light = (TEMPLATES / "style.css").read_text().split("}")[0]
    return dict(re.findall(r"--(\w+): (#\w+)", light))


def _value(row: MeasureRow, kind: str, adapters: Sequence[str]) -> Spec:
    place = adapters.index(row.adapter) if row.adapter in adapters else len(adapters)
    p = row.point
    return {
        "lane": row.adapter,
        "at": place,
        "layer": row.layer,
        "kind": kind,
        "series": place % SERIES,
        **{name: getattr(p, name) for name in ("value", "low", "high")},
        "null": p.null if kind == KINDS[0] else None,
        "ceiling": p.ceiling if kind == KINDS[0] else None,
        "told": p.reason,
    }


def _extent(values: Sequence[Spec]) -> tuple[float, float]:
    """From 0, or what lies below it, to 1, or what lies above it."""
    parts = ("value", "low", "high", "null", "ceiling")
    known = [v[part] for v in values for part in parts if v[part] is not None]
    return min([0.0, *known]), max([1.0, *known])


def _title(data: PageData, name: str) -> str:
    return data.glossary[name].title if name in data.glossary else name


def _colours() -> alt.Scale:
    return alt.Scale(domain=list(range(SERIES)), range=[f"@s{i}" for i in range(SERIES)])


def _styled(chart: Any) -> Any:
    font = "-apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
    axis = {"labelColor": "@muted", "domainColor": "@hair", "tickColor": "@hair", "gridColor": "@hair"}
    styled = chart.configure(font=font, background="transparent")  # type: ignore[arg-type]
    return styled.configure_axis(labelFontSize=12, **axis).configure_view(stroke=None)
