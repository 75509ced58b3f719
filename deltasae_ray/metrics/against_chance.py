"""How a figure stands to its null, by one rule for the verdict, the tables and the page; and what a mean
max-cosine says.

The base control is what makes a max-cosine worth reading: a second dictionary of base activations should be
aligned with the reference. Where it is not, the figure says nothing of an adapter, whatever it is.
"""

from collections.abc import Mapping
from typing import Literal

from deltasae_ray.metrics.catalogue import Metric
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import Tail

Standing = Literal["beyond chance", "at chance", "not to be told from chance", "worse than chance"]
"""Beyond it is on the side that the metric's tail names, where something is found; worse, on the other."""

CHANCE_MARGIN = 0.05
"""A mean max-cosine within this of its null is at chance, however many latents make the gap significant."""
BETTER_BY_LUCK = 0.05
"""p up to which the figure is beyond its null; the interval does not know the null's own error, p does."""


def standing_of(entry: Metric, m: Measure) -> Standing | None:
    """Where a metric of the catalogue stands to its null; None where nothing can be said: no value, no null,
    or neither interval nor p."""
    return standing(m, entry.tail or "two-sided", CHANCE_MARGIN if entry.unit == "cosine" else 0.0)


def standing(m: Measure, tail: Tail = "greater", margin: float = 0.0) -> Standing | None:
    """By the whole interval, and p where there is one. Without an interval p alone tells; where there is
    neither, nothing does.

    Args:
        margin: distance from the null that counts as none. An interval that reaches beyond it and not wholly
            is not to be told from chance; without a margin such an interval includes the null, and is at
            chance.
    """
    if m.value is None or m.null is None or (m.ci is None and (m.p is None or margin)):
        return None
    if m.ci is None:
        assert m.p is not None
        return (
            "beyond chance" if m.p <= BETTER_BY_LUCK else "at chance"
        )  # p adjusted for many tests end near 1, and that says nothing
    low, high = m.ci[0] - m.null, m.ci[1] - m.null
    if tail == "less" or (tail == "two-sided" and low + high < 0):
        low, high = -high, -low
    if low > margin:
        return "beyond chance" if m.p is None or m.p <= BETTER_BY_LUCK else "not to be told from chance"
    if high < -margin:
        return (
            "worse than chance" if m.p is None or m.p >= 1 - BETTER_BY_LUCK else "not to be told from chance"
        )
    return "at chance" if not margin or high < margin else "not to be told from chance"


def matched(m: Measure) -> Standing:
    """A mean max-cosine's; without an interval it is not to be told from chance."""
    return standing(m, "greater", CHANCE_MARGIN) or "not to be told from chance"


_SENTENCES: Mapping[Standing, str] = {
    "beyond chance": "aligned",
    "at chance": "at chance",
    "not to be told from chance": "not to be told from chance",
    "worse than chance": "below chance",
}
"""A standing in the word for dictionaries."""


def matching_sentence(
    published: Measure, calibrated: Measure | None = None, untrained: Measure | None = None
) -> str:
    """What a mean max-cosine is worth, or nothing where it was not measured. Activations are anisotropic, so
    that only atoms which know the deltas' covariance can make it "aligned"; isotropic ones can make it "at
    chance".

    Args:
        published: over all latents, against the isotropic null.
        calibrated: over living latents, against the covariance-matched null.
        untrained: as published, of the decoder before training.
    """
    parts = (
        [_published(published, untrained)]
        if published.value is not None and published.null is not None
        else []
    )
    if calibrated is not None and calibrated.value is not None and calibrated.null is not None:
        text = (
            f"of living latents {calibrated:.3f}, atoms that know only the deltas' covariance"
            f" {calibrated.null:.3f}"
        )
        parts.append(f"{text}: {_SENTENCES[matched(calibrated)]}")
    elif parts and matched(published) not in ("at chance", "worse than chance"):
        parts.append(
            "whether it is aligned cannot be said, since it was not held against atoms of the deltas'"
            " covariance"
        )
    return f"Mean max-cosine {'; '.join(parts)}" if parts else ""


def _published(m: Measure, untrained: Measure | None) -> str:
    text = f"as published {m:.3f}, isotropic chance {m.null:.3f}"
    if untrained is not None and untrained.value is not None:
        text += f", the decoder before training {untrained.value:.3f}"
    above = "above isotropic chance, as atoms of anisotropic data are too"
    counterpart = matched(m)
    return f"{text}: {above if counterpart == 'beyond chance' else _SENTENCES[counterpart]}"


def control_sentence(control: Measure | None, *, given: bool) -> str:
    """How a second dictionary of base activations stands against the reference, and what that makes of the
    figure.

    Args:
        control: mean max-cosine of the base control, against atoms that know the base activations'
            covariance; None where there is none.
        given: the reference was not fitted here, and the control has another recipe.
    """
    if control is None:
        return (
            "No base control was fitted (diverge.controls=base), so whether the figure can see alignment is"
            " not known"
        )
    who = f"The base control (a second dictionary of base activations{OTHER_RECIPE if given else ''})"
    if control.value is None or control.null is None:
        why = f": {control.reason}" if control.reason else ""
        return f"{who} has no such figure{why}, so whether the figure can see alignment is not known"
    counterpart = matched(control)
    text = f"atoms of the base activations' covariance {control.null:.3f}"
    return f"{who} reaches {control:.3f}, {text}: {_SENTENCES[counterpart]}, {_WORTH[counterpart]}"


OTHER_RECIPE = ", by the grid's first recipe and not the reference's"
"""Said of the base control beside a reference that was given."""
_WORTH: Mapping[Standing, str] = {
    "beyond chance": "so the figure can see alignment",
    "at chance": "so the figure says nothing of an adapter",
    "worse than chance": "so the figure says nothing of an adapter",
    "not to be told from chance": "so whether the figure says anything of an adapter is not known",
}


def control_statement(by_layer: Mapping[int, Measure], *, given: bool) -> str:
    """Says what the control is worth at all layers, in one sentence to stand under the verdicts; nothing
    where there is no control."""
    groups: dict[Standing, list[str]] = {}
    for layer, m in sorted(by_layer.items()):
        beside = f" ({m:.2f}, null {m.null:.2f})" if m.value is not None and m.null is not None else ""
        groups.setdefault(matched(m), []).append(f"{layer}{beside}")
    if not groups:
        return ""
    text = "; ".join(
        f"{_SENTENCES[at]} at layer{'s' if len(where) > 1 else ''} {', '.join(where)}, {_WORTH[at]} there"
        for at, where in groups.items()
    )
    recipe = OTHER_RECIPE if given else ""
    return (
        f"Mean max-cosine of the base control (a second dictionary of base activations{recipe}) with the"
        f" reference: {text}."
    )
