"""The README's figure, drawn from the demo: `python -m tests.demo_figure runs/demo/report.json [metric]`.

It writes docs/demo.svg and prints the figures that README and docs/demo.md name. `tests/test_readme.py` holds them
against the last `tests/evidence/*-demo.txt`, so keep the demo's output there.
"""

import sys
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from deltasae_ray.report.charts import coloured, layer_values, palette
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.page_data import page_data

FILE = Path(__file__).parents[1] / "docs" / "demo.svg"


def figure(inputs: ReportInputs, metric: str) -> tuple[str, list[str]]:
    """The SVG, and a line of text for each point."""
    data, _ = page_data(inputs)
    points = [v for v in layer_values(data, metric) if v["kind"] == "adapter" and v["value"] is not None]
    for p in points:
        p["text"] = f"{p['value']:.2f} [{p['low']:.2f}, {p['high']:.2f}]"
    title = f"{data.glossary[metric].title}, by layer and adapter: 0 to 1, with 95 % intervals"
    panel = _panel(alt.Chart()).facet(
        row=alt.Row(
            "layer:O", title=None, header=alt.Header(labelAngle=0, labelExpr="'layer ' + datum.value")
        ),
        data=alt.Data(values=points),
    )
    chart = panel.properties(title=alt.TitleParams(title, anchor="start")).configure(background="white")
    spec = coloured(chart.to_dict(validate=False), palette())
    lines = [f"{p['lane']}, layer {p['layer']}: {p['text']}" for p in points]
    return vl_convert.vegalite_to_svg(spec), lines


def _panel(data: Any) -> Any:
    """One layer: adapters below each other."""
    y = alt.Y("lane:N", title=None, sort=alt.EncodingSortField("at"))
    color = alt.Color(
        "series:N", legend=None, scale=alt.Scale(domain=[0, 1, 2, 3], range=["@s0", "@s1", "@s2", "@s3"])
    )
    x = alt.X("value:Q", scale=alt.Scale(domain=[0, 1]), title=None)
    rule = data.mark_rule(strokeWidth=3, clip=True).encode(
        x=alt.X("low:Q", title=None), x2="high:Q", y=y, color=color
    )
    point = data.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=color)
    label = data.mark_text(align="left", fontSize=12).encode(x=alt.value(570), y=y, text="text:N")
    return alt.layer(rule, point, label).properties(width=560, height=alt.Step(24))


if __name__ == "__main__":
    drawn, told = figure(
        ReportInputs.from_json(Path(sys.argv[1]).read_text()), (*sys.argv[2:], "missing_share")[0]
    )
    FILE.write_text(drawn)
    sys.stdout.write("\n".join([*told, ""]))
