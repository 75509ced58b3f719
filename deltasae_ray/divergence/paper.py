"""The published figures (arXiv 2605.28896, Gemma 2 9B) beside ours: measured as published, and calibrated; each with its null."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from deltasae_ray.divergence.measure import Measure
from deltasae_ray.divergence.published import NOVEL_BELOW
from deltasae_ray.divergence.verdict import Behaviour, LeafFigures

LAYERS = (5, 10, 18, 22, 32, 38)
"""Where the paper looked, of 42 blocks."""
RANKS: tuple[int, ...] = (4, 8, 16, 32)
"""Ranks of its adapters."""


@dataclass(frozen=True)
class Published:
    """One figure of the paper, and what we measure in its place."""

    title: str
    values: tuple[str, ...]
    """One for all layers, or one for each of LAYERS (`by_rank`: of RANKS)."""
    as_published: tuple[str, ...] = ()
    """Metrics that follow the paper's definition; the first that was measured is shown."""
    calibrated: tuple[str, ...] = ()
    """Metrics that answer the same question with a null that means something; likewise."""
    untrained: str = ""
    """Metric of the same figure before training, told beside the null."""
    by_rank: bool = False
    """At the deepest layer, a line per rank, as the paper gives it."""
    told_where_absent: bool = True
    """Whether there is a line of it where it was not measured."""


_NARROW = (128, 64, 32, 16, 8, 4, 2, 1)
"""Where a model is too narrow for 256 directions, the most that it is wide enough for."""


def _angle(k: int, value: str, *others: int) -> Published:
    published, calibrated = (tuple(f"{name}_k{size}" for size in (k, *others)) for name in ("paper_angle", "angle_decoder"))
    return Published(f"mean principal angle, k = {k}, degrees", (value,), published, calibrated, told_where_absent=bool(others))


PUBLISHED = (
    Published("mean max-cosine", ("0.071",), ("paper_max_cosine",), ("max_cosine",), untrained="paper_max_cosine_untrained"),
    Published("median max-cosine", ("0.066",), ("paper_median_cosine",), ("median_cosine",)),
    _angle(64, "72.4 to 75.0, ± 2"),
    _angle(128, "72.4 to 75.0, ± 2"),
    _angle(256, "72.4 to 75.0", *_NARROW),
    _angle(512, "72.4 to 75.0, ± 2"),
    Published(
        "relative error of the reference", ("2.46", "1.57", "1.28", "1.18", "1.26", "1.14"), ("paper_relative_error",), ("missing_share",)
    ),
    Published(
        "relative error of the delta dictionary",
        ("0.34", "0.44", "0.39", "0.39", "0.57", "0.61"),
        ("paper_relative_error_delta",),
        ("fvu_delta",),
    ),
    Published("novel latents", ("72 to 80 %",), ("paper_novel_share",), ("novel_share",)),
    Published("density at the deepest layer", ("30.3", "33.7", "35.0", "41.7"), ("density",), ("effective_latents",), by_rank=True),
    Published(
        "delta norm at the deepest layer",
        ("below 345", "345, the largest", "below 345", "below 345"),
        ("delta_norm",),
        ("delta_relative_energy",),
        by_rank=True,
    ),
)

NOTES = (
    f"Novel latents as published: those whose largest cosine is below {NOVEL_BELOW:g}. The paper's own threshold is not known here; its "
    "share and its mean together leave no room for a higher one. At the paper's sizes chance alone calls every latent novel by it.",
    "A relative error is Σ‖δ - δ̂‖² / Σ‖δ‖², not about the mean; whether the paper squares the norms is not known here. The delta "
    "dictionary's null is predicting the mean change, the reference's is predicting zero.",
    "Angles: by chance 83.4° at k = 64, 80.7° at 128, 76.7° at 256 and 70.6° at 512 in d_model 3584. Where a model is too narrow for 256 "
    "directions the most that it is wide enough for stand there, and their number is named.",
    "Cells are means over adapters. TopK dictionaries have no density: it is their k.",
    "Steering, which had no effect in the paper, is not repeated here.",
)
"""What must be known to read the table."""


@dataclass(frozen=True)
class Line:
    """One line of the table, as it is written."""

    figure: str
    where: str
    """Layer, or layer and rank."""
    paper: str
    published: str
    """Measured as published."""
    published_null: str
    calibrated: str
    calibrated_null: str


@dataclass(frozen=True)
class Judged:
    """The dictionary by which one adapter is judged at one layer."""

    rank: int | None
    figures: LeafFigures


def paper_lines(judged: Sequence[Judged], behaviour: Mapping[str, Sequence[Behaviour]] | None = None) -> list[Line]:
    """A line per figure and layer, means over adapters; layers stand beside the paper's by their order where there are as many, else
    beside its whole range.

    Args:
        behaviour: adapter → what it does to predictions, by text.
    """
    layers = sorted({j.figures.layer for j in judged})
    lines: list[Line] = []
    for figure in PUBLISHED:
        if figure.by_rank:
            lines += _by_rank(figure, judged, layers[-1:])
            continue
        for i, layer in enumerate(layers):
            of_paper = figure.values[i] if len(figure.values) == len(layers) else _range(figure.values)
            here = [j.figures.measures for j in judged if j.figures.layer == layer]
            if figure.told_where_absent or any(figure.as_published[0] in m for m in here):
                lines.append(_line(figure, str(layer), of_paper, here))
    return lines + _growth(judged, layers) + _effect(behaviour or {})


def paper_table(lines: Sequence[Line]) -> str:
    """Markdown."""
    rows = ["| figure | layer | paper | as published | its null | calibrated | its null |", "|---|---|---|---|---|---|---|"]
    rows += ["| " + " | ".join(astuple(line)) + " |" for line in lines]
    return "\n".join(rows) + "\n\n" + "\n".join(f"- {note}" for note in NOTES) + "\n"


def _by_rank(figure: Published, judged: Sequence[Judged], deepest: Sequence[int]) -> list[Line]:
    of_paper = dict(zip(RANKS, figure.values, strict=True))
    lines = []
    for layer in deepest:
        for rank in sorted({j.rank for j in judged if j.rank is not None}):
            here = [j.figures.measures for j in judged if (j.figures.layer, j.rank) == (layer, rank)]
            lines.append(_line(figure, f"{layer}, r = {rank}", of_paper.get(rank, "–"), here))
    return lines


def _line(figure: Published, where: str, of_paper: str, here: Sequence[Mapping[str, Measure]]) -> Line:
    published, published_null = _shown(figure.as_published, here)
    if figure.untrained and (before := _shown((figure.untrained,), here)[0]) != "–":
        published_null += f"; before training {before}"
    return Line(figure.title, where, of_paper, published, published_null, *_shown(figure.calibrated, here, named=True))


def _growth(judged: Sequence[Judged], layers: Sequence[int]) -> list[Line]:
    """How much the norm of the change grows from the first layer to the last, and how much faster than the residual stream."""
    if len(layers) < 2:
        return []
    first, last = layers[0], layers[-1]

    def grown(metric: str) -> float | None:
        values = []
        for layer in (first, last):
            found = [v for j in judged if j.figures.layer == layer and (v := j.figures.get(metric).value) is not None]
            values.append(sum(found) / max(1, len(found)))
        return values[1] / values[0] if values[0] > 0 else None

    norm, energy = grown("delta_norm"), grown("delta_relative_energy")
    relative = "–" if energy is None else f"× {energy**0.5:.3g} (of the base's norm)"
    absolute = "–" if norm is None else f"× {norm:.3g}"
    return [Line("delta norm, first layer to last", f"{first} to {last}", "× 18", absolute, "–", relative, "1: as the residual stream")]


def _effect(behaviour: Mapping[str, Sequence[Behaviour]]) -> list[Line]:
    """What the adapters do to predictions: the paper saw none on its test prompts."""
    return [
        Line("effect on predictions, KL in nats", f"{adapter}, {b.corpus}", "none seen", "–", "–", f"{b.kl:.3g}", "0")
        for adapter, found in behaviour.items()
        for b in found
    ]


def _range(values: tuple[str, ...]) -> str:
    return values[0] if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def _shown(names: Sequence[str], here: Sequence[Mapping[str, Measure]], *, named: bool = False) -> tuple[str, str]:
    """Means of the values and of the nulls of the first metric that was measured; the value is "undefined" where none of several is
    defined. A metric is named where the reader could not know which it is."""
    name = next((n for n in names if any(n in m for m in here)), "")
    measures = [m[name] for m in here if name in m]
    values = [m.value for m in measures if m.value is not None]
    nulls = [m.null for m in measures if m.null is not None]
    value = f"{sum(values) / len(values):.3g}" if values else "undefined" if measures else "–"
    tag = f" ({name})" if measures and (named or name != names[0]) else ""
    return value + tag, f"{sum(nulls) / len(nulls):.3g}" if nulls else "–"
