"""The published figures (arXiv 2605.28896, Gemma 2 9B) beside ours: measured as published, and calibrated;
each with its null."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.paper_figures import PUBLISHED, RANKS, Published
from deltasae_ray.analyses.verdict import LeafFigures
from deltasae_ray.metrics.geometry.published import NOVEL_BELOW
from deltasae_ray.metrics.measure import Measure

NOTES = (
    (
        f"Novel latents as published: those whose largest cosine is below {NOVEL_BELOW:g}. The paper's own"
        " threshold is not known here; its share and its mean together leave no room for a higher one. At"
        " the paper's sizes chance alone calls every latent novel by it."
    ),
    (
        "A relative error is Σ‖δ - δ̂‖² / Σ‖δ‖², not about the mean; whether the paper squares the norms is"
        " not known here. The delta dictionary's null is predicting the mean change, the reference's is"
        " predicting zero."
    ),
    (
        "Angles: by chance 83.4° at k = 64, 80.7° at 128, 76.7° at 256 and 70.6° at 512 in d_model 3584."
        " Where a model is too narrow for 256 directions the most that it is wide enough for stand there, and"
        " their number is named."
    ),
    (
        "Cells are means over the adapters named above them, over seeds where there are several. The interval"
        " of a mean is the mean of the adapters' intervals: it speaks of these adapters and of no others, and"
        " is too long where their errors are not alike."
    ),
    "TopK dictionaries have no density: it is their k.",
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
class Block:
    """The lines of dictionaries of one shape, or of what no dictionary enters."""

    title: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    """Why figures in it have no interval."""


@dataclass(frozen=True)
class Judged:
    """A dictionary of one adapter at one layer: of those of its size, the first seed's, with the figures over
    all seeds."""

    rank: int | None
    """Of the adapter."""
    figures: LeafFigures

    @property
    def adapter(self) -> str:
        return self.figures.adapter


def paper_blocks(
    judged: Sequence[Judged], behaviour: Mapping[str, Sequence[Behaviour]] | None = None
) -> list[Block]:
    """A block per shape of dictionary, and one of what none enters. In it a line per figure and layer, means
    over adapters; layers stand beside the paper's by their order where there are as many, else beside its
    whole range.

    Args:
        behaviour: adapter → what it does to predictions, by text.
    """
    blocks = []
    for shape in sorted({j.figures.shape for j in judged}):
        here = [j for j in judged if j.figures.shape == shape]
        adapters = list(dict.fromkeys(j.adapter for j in here))
        blocks.append(
            _block(
                f"d_sae {shape.d_sae:,}, k {shape.k}, {shape.architecture}; {', '.join(adapters)}",
                _of_dictionaries(here),
            )
        )
    once = list({(j.adapter, j.figures.layer): j for j in judged}.values())
    whatever = [*_of_changes(once), *_effect(behaviour or {})]
    return [*blocks, _block("Whatever the dictionary", whatever)] if whatever else blocks


def paper_table(blocks: Sequence[Block]) -> str:
    """Markdown."""
    parts = []
    for block in blocks:
        rows = [
            "| figure | layer | paper | as published | its null | calibrated | its null |",
            "|---|---|---|---|---|---|---|",
        ]
        rows += ["| " + " | ".join(astuple(line)) + " |" for line in block.lines]
        parts += [f"### {block.title}", "\n".join(rows), *(f"- {note}" for note in block.notes)]
    return "\n\n".join(parts) + "\n\n" + "\n".join(f"- {note}" for note in NOTES) + "\n"


@dataclass(frozen=True)
class _NotedLine:
    """A line, and why a mean in it has no interval."""

    line: Line
    lacking: tuple[str, ...] = ()


def _block(title: str, shown: Sequence[_NotedLine]) -> Block:
    lacking: dict[str, list[str]] = {}
    for t in shown:
        for reason in t.lacking:
            lacking.setdefault(reason, []).append(t.line.figure)
    notes = tuple(f"{', '.join(dict.fromkeys(figures))}: {reason}." for reason, figures in lacking.items())
    return Block(title, tuple(t.line for t in shown), notes)


def _of_dictionaries(judged: Sequence[Judged]) -> list[_NotedLine]:
    layers = sorted({j.figures.layer for j in judged})
    parts: list[_NotedLine] = []
    for figure in PUBLISHED:
        if figure.by_rank:
            parts += _by_rank(figure, judged, layers[-1:]) if figure.of_dictionary else []
            continue
        for i, layer in enumerate(layers):
            of_paper = figure.values[i] if len(figure.values) == len(layers) else _range(figure.values)
            here = [j.figures for j in judged if j.figures.layer == layer]
            if figure.shown_where_absent or any(figure.as_published[0] in f.measures for f in here):
                parts.append(_line(figure, str(layer), of_paper, here))
    return parts


def _of_changes(judged: Sequence[Judged]) -> list[_NotedLine]:
    layers = sorted({j.figures.layer for j in judged})
    by_rank = [
        t for f in PUBLISHED if f.by_rank and not f.of_dictionary for t in _by_rank(f, judged, layers[-1:])
    ]
    return by_rank + _growth(judged, layers)


def _by_rank(figure: Published, judged: Sequence[Judged], deepest: Sequence[int]) -> list[_NotedLine]:
    of_paper = dict(zip(RANKS, figure.values, strict=True))
    parts = []
    for layer in deepest:
        for rank in sorted({j.rank for j in judged if j.rank is not None}):
            here = [j.figures for j in judged if (j.figures.layer, j.rank) == (layer, rank)]
            parts.append(_line(figure, f"{layer}, r = {rank}", of_paper.get(rank, "–"), here))
    return parts


def _line(figure: Published, where: str, of_paper: str, here: Sequence[LeafFigures]) -> _NotedLine:
    published, calibrated = _mean(figure.as_published, here), _mean(figure.calibrated, here, named=True)
    null = published.null
    if figure.untrained and (before := _mean((figure.untrained,), here).value) != "–":
        null += f"; before training {before}"
    line = Line(figure.title, where, of_paper, published.value, null, calibrated.value, calibrated.null)
    return _NotedLine(line, tuple(filter(None, (published.lacking, calibrated.lacking))))


def _growth(judged: Sequence[Judged], layers: Sequence[int]) -> list[_NotedLine]:
    """How much the norm of the change grows from the first layer to the last, and how much faster than the
    residual stream."""
    if len(layers) < 2:
        return []
    first, last = layers[0], layers[-1]

    def grown(metric: str) -> float | None:
        at: list[dict[str, float]] = [{}, {}]
        for j in judged:
            if j.figures.layer in (first, last) and (v := j.figures.get(metric).value) is not None:
                at[j.figures.layer == last][j.adapter] = v
        both = at[0].keys() & at[1].keys()  # a ratio of the same adapters
        before, after = (sum(values[a] for a in both) for values in at)
        return after / before if before > 0 else None

    norm, energy = grown("delta_norm"), grown("delta_relative_energy")
    relative = "–" if energy is None else f"× {energy**0.5:.3g} (of the base's norm)"
    absolute = "–" if norm is None else f"× {norm:.3g}"
    line = Line(
        "delta norm, first layer to last",
        f"{first} to {last}",
        "× 18",
        absolute,
        "–",
        relative,
        "1: as the residual stream",
    )
    return [
        _NotedLine(
            line,
            (
                (
                    "interval undefined: a ratio of two means over the same documents, of which each alone"
                    " has its interval"
                ),
            ),
        )
    ]


def _effect(behaviour: Mapping[str, Sequence[Behaviour]]) -> list[_NotedLine]:
    """What the adapters do to predictions: the paper saw none on its test prompts."""
    return [
        _NotedLine(
            Line(
                "effect on predictions, KL in nats",
                f"{adapter}, {b.corpus}",
                "none seen",
                "–",
                "–",
                f"{b.kl:.3g}",
                "0",
            ),
            () if b.kl.value is None or b.kl.ci else (_no_interval([b.kl]),),
        )
        for adapter, changes in behaviour.items()
        for b in changes
    ]


def _range(values: tuple[str, ...]) -> str:
    return values[0] if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


@dataclass(frozen=True)
class _Mean:
    """A cell of the table."""

    value: str
    null: str
    lacking: str = ""
    """Why the mean has no interval."""


def _mean(names: Sequence[str], here: Sequence[LeafFigures], *, named: bool = False) -> _Mean:
    """Averages the first metric that was measured over leaves, over seeds where there are several. The
    adapters' intervals are of the same documents or the same kind of latents; errors of a mean are at most
    the mean of errors, so the mean of their ends is an interval of it.

    A metric is named where the reader could not know which it is, and how many adapters it is defined for
    where that is not all.
    """
    name = next((n for n in names if any(n in f.measures for f in here)), "")
    measures = [f.over_seeds(name) for f in here if name in f.measures]
    if not measures:
        return _Mean("–", "–")
    tag = f" ({name})" if named or name != names[0] else ""
    nulls = [m.null for m in measures if m.null is not None]
    null = f"{sum(nulls) / len(nulls):.3g}" if nulls else "–"
    defined = [m for m in measures if m.value is not None]
    if not defined:
        return _Mean(f"undefined{tag}", null)
    text = f"{sum(m.value or 0.0 for m in defined) / len(defined):.3g}"
    ends = [m.ci for m in defined if m.ci is not None]
    if len(ends) == len(defined):
        text += " [{:.3g}, {:.3g}]".format(*(sum(end) / len(ends) for end in zip(*ends, strict=True)))
    some = f" ({len(defined)} of {len(measures)} adapters)" if len(defined) < len(measures) else ""
    return _Mean(text + some + tag, null, "" if len(ends) == len(defined) else _no_interval(defined))


def _no_interval(measures: Sequence[Measure]) -> str:
    reasons = (m.why("ci") for m in measures if m.ci is None)
    return next(filter(None, reasons), "interval undefined: an adapter's own has none")
