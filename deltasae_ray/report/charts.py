"""The figures of the page. Each is several small panels, the words that belong beside them, and a legend."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.metrics.catalogue import directions
from deltasae_ray.report import svg
from deltasae_ray.report.curves import learning_panels, line_panels
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.marks import Cell, LegendEntry, Style, in_order, point, spoken, swatch
from deltasae_ray.report.notes import against_null, chance_notes, places
from deltasae_ray.report.seeds import leading_rows, seeds_notes
from deltasae_ray.report.wording import catalogued, describe, figure

FVU_SERIES = (
    ("fvu_delta", "delta dictionary", "s0", "circle"),
    ("fvu_pca", "PCA-k", "s3", "square"),
    ("fvu_random_atoms", "random atoms", "sc", "diamond"),
    ("fvu_reference", "{reference}", "s1", "triangle"),
)
MATCHING_SERIES = (
    ("max_cosine", "delta dictionary", "s0", "circle"),
    ("max_cosine_random_adapter", "the same recipe on a random adapter's deltas", "sc", "square"),
    ("max_cosine_base_control", "second dictionary of base activations", "s2", "triangle"),
)
CONTROL_SERIES = (
    ("missing_share", "{reference}", "s1", "triangle"),
    ("missing_share_base_control", "second dictionary of base activations", "s2", "circle"),
    ("missing_share_random_adapter", "{reference}, of a random adapter's deltas", "s4", "square"),
)
SCALES = {
    "not_visible_share": "0: every judged latent is visible, or partly. 1: none is.",
    "calibration": "0: every judged latent is visible, or partly. 1: none is.",
    "missing_share": (
        "0: all of it is in the reference. 1: the reference does no better than featureless atoms."
    ),
    "controls": "0: all of it is in the reference. 1: no better than featureless atoms.",
    "max_cosine_weighted": "1: exact copies of reference latents.",
    "matching": "1: exact copies of reference latents.",
    "fvu": "0: nothing is left. 1: no better than predicting the mean.",
    "angle_pca": "0°: the same subspace. 90°: orthogonal.",
    "learning": "0: nothing is left. 1: no better than predicting the mean.",
    "dead_latents": "0: every latent fired within the last epoch.",
}
"""What the ends of each figure's scale mean."""


MOST_PANELS = 6
"""More adapters and sizes than this, and only the largest dictionaries are drawn beside their baselines."""


@dataclass(frozen=True)
class Figure:
    """One figure: where it was not measured, `panels` is empty and `notes` says so."""

    key: str
    """A metric of `wording.METRICS`, and what it is drawn over."""
    title: str
    scale: str
    """What the ends of its scale mean."""
    legend: tuple[LegendEntry, ...]
    panels: tuple[Markup, ...]
    notes: tuple[str, ...]


def figures(inputs: ReportInputs) -> tuple[Figure, ...]:
    """All figures, in the order of the page; those without any data are left out, but for the headline's."""
    found = [
        by_layer(inputs, "not_visible_share", guides=(0.0, 1.0)),
        learning(inputs, "calibration"),
        by_layer(inputs, "missing_share", guides=(0.0, 1.0)),
        by_series(inputs, "controls", CONTROL_SERIES, guides=(0.0, 1.0)),
        by_layer(inputs, "max_cosine_weighted", guides=(0.0,)),
        by_series(inputs, "matching", MATCHING_SERIES, guides=(0.0,)),
        by_series(inputs, "fvu", FVU_SERIES, guides=(0.0, 1.0), notes=_beaten(inputs)),
        over_k(inputs, "angle_pca", "directions, k", _angles_over_k(inputs), (0.0, 90.0)),
        learning(inputs, "learning"),
        learning(inputs, "dead_latents"),
    ]
    return tuple(f for f in found if f.panels or f.key == "missing_share_by_layer")


def by_layer(inputs: ReportInputs, metric: str, *, guides: tuple[float, ...]) -> Figure:
    """One metric: a panel per dictionary size, a group per layer, an adapter a point with interval, null and
    ceiling, over its seeds."""
    rows = leading_rows(inputs.rows, (metric,))
    words = describe(metric, inputs)
    style = Style.of(inputs, [r.adapter for r in rows])
    panels = []
    for size in sorted({(r.d_sae or 0, r.k or 0) for r in rows}):
        here = [r for r in rows if (r.d_sae or 0, r.k or 0) == size]
        lanes = [
            (adapter, seed)
            for adapter in style.css
            for seed in sorted({r.seed or 0 for r in here if r.adapter == adapter})
        ]
        cells = [
            Cell(r, style.css[r.adapter], style.shape[r.adapter], lanes.index((r.adapter, r.seed or 0)))
            for r in here
        ]
        panels.append(
            _grouped(
                cells,
                f"d_sae {size[0]}, k {size[1]}" if size[0] else "",
                _y(rows, guides),
                guides,
                words.label,
            )
        )
    notes = [*chance_notes(rows, inputs, metric), *seeds_notes(rows)] or ["Not measured in this study."]
    legend = (*style.legend(), *_reading(rows)) if rows else ()
    return Figure(
        f"{metric}_by_layer",
        f"{words.label} by rank and layer",
        SCALES.get(metric, ""),
        legend,
        tuple(panels),
        tuple(notes),
    )


def by_series(
    inputs: ReportInputs,
    key: str,
    series: Sequence[tuple[str, str, str, str]],
    *,
    guides: tuple[float, ...],
    notes: Sequence[str] = (),
) -> Figure:
    """Several metrics of the same cells beside each other: a panel per adapter and size, a group per
    layer."""
    rows = [
        replace(r, over_seeds=False) for r in leading_rows(inputs.rows, [metric for metric, *_ in series])
    ]
    words = describe(key, inputs)
    if len({r.name for r in rows if r.value is not None}) < 2:
        return Figure(key, words.label, "", (), (), ())
    look = {metric: (css, shape, lane) for lane, (metric, _, css, shape) in enumerate(series)}
    # Their nulls differ in kind; drawn here they would only hide the points.
    drawn = [replace(r, measure=replace(r.measure, null=None, ceiling=None)) for r in rows]
    order, largest = in_order(inputs, [r.adapter for r in drawn]), max(r.d_sae or 0 for r in drawn)
    places_shown = sorted(
        {(r.adapter, r.d_sae or 0) for r in drawn}, key=lambda cell: (order.index(cell[0]), cell[1])
    )
    if len(places_shown) > MOST_PANELS:
        places_shown = [(adapter, size) for adapter, size in places_shown if size == largest]
        notes = [*notes, f"Drawn for d_sae {largest}; the other sizes are among the measures below."]
    y, panels = _y(drawn, guides), []
    for adapter, size in places_shown:
        cells = [Cell(r, *look[r.name]) for r in drawn if (r.adapter, r.d_sae or 0) == (adapter, size)]
        panels.append(
            _grouped(cells, f"{adapter}, d_sae {size}" if size else adapter, y, guides, words.label)
        )
    legend = [
        LegendEntry(label.format(reference=inputs.reference), swatch(svg.mark(9, 7, shape, f"dot {css}")))
        for metric, label, css, shape in series
        if any(r.name == metric for r in drawn)
    ]
    return Figure(
        key, f"{words.label}, by layer", SCALES.get(key, ""), tuple(legend), tuple(panels), tuple(notes)
    )


def over_k(
    inputs: ReportInputs, metric: str, x_label: str, at: dict[DivergenceRow, int], include: tuple[float, ...]
) -> Figure:
    """A panel per layer: a line with its interval per adapter over k, and the band that the adapters' nulls
    span."""
    words = describe(metric, inputs)
    name = words.label
    if len(set(at.values())) < 2:
        return Figure(f"{metric}_over_k", name, "", (), (), ())
    style = Style.of(inputs, [r.adapter for r in at])
    y = svg.y_axis(*svg.padded(_numbers(list(at)), include=include))
    panels = line_panels(at, x_label, y, style, name)
    band = LegendEntry("null", swatch(svg.bar(0, 3, 18, 8, "nullband")))
    notes = chance_notes(list(at), inputs, metric, over=at)
    return Figure(
        f"{metric}_over_k",
        f"{name} over k",
        SCALES.get(metric, ""),
        (*style.legend(), band),
        tuple(panels),
        tuple(notes),
    )


def learning(inputs: ReportInputs, key: str) -> Figure:
    """A panel per layer: how each dictionary's unexplained variance, or number of dead latents, went over
    optimizer steps; or how the share of latents not visible falls with what the reference holds."""
    found = [c for c in inputs.curves if c.figure == key and c.points]
    style = Style.of(inputs, [c.adapter for c in found])
    words = describe(key, inputs)
    say = svg.number if key == "dead_latents" else figure
    x_label = "share of features in the reference" if key == "calibration" else "optimizer step"
    panels, labels = learning_panels(found, style, words.label, say, x_label)
    return Figure(
        key, words.label, SCALES[key], (*style.legend(), *labels) if panels else (), tuple(panels), ()
    )


def _grouped(cells: Sequence[Cell], title: str, y: svg.Axis, guides: tuple[float, ...], label: str) -> Markup:
    """A panel of points in groups by layer; each keeps to its lane in every group, so that a gap is seen as
    one."""
    layers = sorted({c.row.layer for c in cells})
    group = (svg.WIDTH - svg.LEFT - svg.RIGHT) / max(1, len(layers))
    lanes = max((c.lane for c in cells), default=0) + 1
    slot = min(30.0, 0.86 * group / lanes)
    middle = {layer: svg.LEFT + (i + 0.5) * group for i, layer in enumerate(layers)}
    parts = [svg.line(svg.LEFT, y(v), svg.WIDTH - svg.RIGHT, y(v), "guide") for v in guides if v]
    for c in cells:
        parts += point(c, middle[c.row.layer] + (c.lane + 0.5 - lanes / 2) * slot, slot, y)
    ticks = [(x, str(layer)) for layer, x in middle.items()]
    said = "; ".join(spoken(c.row) for c in cells)
    return svg.frame(title, y, "layer", ticks, f"{label}, {title}. {said}", parts)


BEATEN = {
    "gain_over_pca": "PCA-k",
    "gain_over_random_atoms": "random atoms",
    "gain_over_gaussian": "the same recipe on Gaussian deltas",
    "gain_over_frozen_decoder": "a random decoder with a trained encoder",
}
"""Gain → what the delta dictionary is held against."""


def _beaten(inputs: ReportInputs) -> list[str]:
    """Where the delta dictionary is not shown to be better than a baseline, in words."""
    notes, compared = [], []
    for metric, name in BEATEN.items():
        rows = [r for r in leading_rows(inputs.rows, (metric,)) if r.value is not None]
        compared += [name] if rows else []
        beaten = [r for r in rows if against_null(r) != "beyond chance"]
        if beaten:
            notes.append(
                f"The delta dictionary is not shown to beat {name} in {len(beaten)} of {len(rows)} cells"
                f" ({places(beaten)})."
            )
    if notes or not compared:
        return notes
    told = " and ".join(filter(None, (", ".join(compared[:-1]), compared[-1])))
    return [f"The delta dictionary leaves less unexplained than {told} in every cell."]


def _angles_over_k(inputs: ReportInputs) -> dict[DivergenceRow, int]:
    """Rows of `angle_pca_k<number>`, one per adapter, layer and k: they do not depend on the dictionary."""
    found: dict[tuple, DivergenceRow] = {}
    for r in inputs.rows:
        if catalogued(r.name).name == "angle_pca_k{k}":
            found.setdefault((r.place, r.name), r)
    return {r: k for r in found.values() if (k := directions(r.name)) is not None}


def _numbers(rows: Sequence[DivergenceRow]) -> list[float]:
    return [v for r in rows for v in (r.value, r.null, r.ceiling, r.ci_low, r.ci_high) if v is not None]


def _y(rows: Sequence[DivergenceRow], guides: tuple[float, ...]) -> svg.Axis:
    return svg.y_axis(*svg.padded(_numbers(rows), include=guides))


def _reading(rows: Sequence[DivergenceRow]) -> list[LegendEntry]:
    """What the marks mean, of those that are drawn."""
    entries = [
        ("ci_low", "95 % interval", svg.line(9, 0, 9, 14, "whisker ink")),
        ("null", "null", svg.bar(0, 3, 18, 8, "nullband")),
        ("ceiling", "ceiling", svg.line(0, 7, 18, 7, "ceiling")),
    ]
    found = [
        LegendEntry(label, swatch(drawn))
        for part, label, drawn in entries
        if any(getattr(r, part) is not None for r in rows)
    ]
    undefined = LegendEntry("undefined", swatch(svg.words(9, 12, "∅", "undefined ink")))
    return [*found, undefined] if any(r.value is None for r in rows) else found
