"""The published figures (arXiv 2605.28896, Gemma 2 9B) beside ours: measured as published, and calibrated; each with its null."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.divergence.measure import Measure
from deltasae_ray.divergence.verdict import LeafFigures

LAYERS = (5, 10, 18, 22, 32, 38)
"""Where the paper looked, of 42 blocks."""


@dataclass(frozen=True)
class Published:
    """One figure of the paper, and what we measure in its place."""

    title: str
    values: tuple[str, ...]
    """One for all layers, or one for each of LAYERS."""
    as_published: str
    """Metric that follows the paper's definition; empty where it gives none that can be repeated."""
    calibrated: tuple[str, ...]
    """Metrics that answer the same question with a null that means something; the first that was measured is shown."""


_ANGLES = tuple(f"angle_decoder_k{k}" for k in (256, 128, 64, 32, 8))
"""The largest that a model is wide enough for."""

PUBLISHED = (
    Published("mean max-cosine", ("0.071",), "paper_max_cosine", ("max_cosine",)),
    Published("mean principal angle, degrees", ("72.4 to 75.0",), "paper_angle", _ANGLES),
    Published(
        "relative error of the reference", ("2.46", "1.57", "1.28", "1.18", "1.26", "1.14"), "paper_relative_error", ("missing_share",)
    ),
    Published("relative error of the delta dictionary", ("0.34", "0.44", "0.39", "0.39", "0.57", "0.61"), "fvu_encoder", ("fvu_delta",)),
    Published("novel latents", ("72 to 80 %",), "", ("novel_share",)),
    Published("density at layer 38", ("30.3 to 41.7",), "density", ("effective_latents",)),
)


def paper_table(leaves: Sequence[LeafFigures]) -> str:
    """Markdown: a line per figure and layer, means over the leaves of a layer (adapters); layers stand beside the paper's by their order
    where there are as many, else beside its whole range.
    """
    layers = sorted({leaf.layer for leaf in leaves})
    rows = ["| figure | layer | paper | as published | its null | calibrated | its null |", "|---|---|---|---|---|---|---|"]
    for figure in PUBLISHED:
        for i, layer in enumerate(layers):
            here = [leaf for leaf in leaves if leaf.layer == layer]
            of_paper = figure.values[i] if len(figure.values) == len(layers) else _range(figure.values)
            published = _mean([leaf.measures[figure.as_published] for leaf in here if figure.as_published in leaf.measures])
            name = next((m for m in figure.calibrated if any(m in leaf.measures for leaf in here)), "")
            calibrated = _mean([leaf.measures[name] for leaf in here if name in leaf.measures])
            shown = f"{calibrated[0]} ({name})" if name else "–"
            rows.append(f"| {figure.title} | {layer} | {of_paper} | {published[0]} | {published[1]} | {shown} | {calibrated[1]} |")
    return "\n".join(rows) + "\n"


def _range(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"{min(values)} to {max(values)}"


def _mean(measures: Sequence[Measure]) -> tuple[str, str]:
    """Means of the values and of the nulls that are there; the value is "undefined" where none of several is defined."""
    values = [m.value for m in measures if m.value is not None]
    nulls = [m.null for m in measures if m.null is not None]
    value = f"{sum(values) / len(values):.3g}" if values else "undefined" if measures else "–"
    return value, f"{sum(nulls) / len(nulls):.3g}" if nulls else "–"
