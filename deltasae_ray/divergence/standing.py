"""What a mean max-cosine says: aligned, at chance, or neither. One rule for the delta dictionary and for the base control.

The base control is what makes the figure worth reading: a second dictionary of base activations should be aligned with the reference. Where
it is not, the figure says nothing of an adapter, whatever it is.
"""

from collections.abc import Mapping
from typing import Literal

from deltasae_ray.divergence.measure import Measure

Standing = Literal["aligned", "at chance", "not to be told from chance"]

CHANCE_MARGIN = 0.05
"""A mean max-cosine within this of its null is at chance, however many latents make the gap significant."""
BETTER_BY_LUCK = 0.05
"""p up to which the figure is above its null; the interval does not know the null's own error, p does."""


def standing(m: Measure) -> Standing:
    """By the whole interval: below null + CHANCE_MARGIN, at chance; above it and p small, aligned; else, or without interval, neither."""
    if m.value is None or m.null is None or m.ci is None:
        return "not to be told from chance"
    low, high = m.ci
    if high < m.null + CHANCE_MARGIN:
        return "at chance"
    known = m.p is None or m.p <= BETTER_BY_LUCK
    return "aligned" if low > m.null + CHANCE_MARGIN and known else "not to be told from chance"


def matching_sentence(published: Measure, calibrated: Measure | None = None, untrained: Measure | None = None) -> str:
    """What a mean max-cosine is worth, or nothing where it was not measured. Activations are anisotropic, so that only atoms which know
    the deltas' covariance can make it "aligned"; isotropic ones can make it "at chance".

    Args:
        published: over all latents, against the isotropic null.
        calibrated: over living latents, against the covariance-matched null.
        untrained: as published, of the decoder before training.
    """
    parts = [_published(published, untrained)] if published.value is not None and published.null is not None else []
    if calibrated is not None and calibrated.value is not None and calibrated.null is not None:
        told = f"of living latents {calibrated:.3f}, atoms that know only the deltas' covariance {calibrated.null:.3f}"
        parts.append(f"{told}: {standing(calibrated)}")
    elif parts and standing(published) != "at chance":
        parts.append("whether it is aligned cannot be said, since it was not held against atoms of the deltas' covariance")
    return f"Mean max-cosine {'; '.join(parts)}" if parts else ""


def _published(m: Measure, untrained: Measure | None) -> str:
    told = f"as published {m:.3f}, isotropic chance {m.null:.3f}"
    if untrained is not None and untrained.value is not None:
        told += f", the decoder before training {untrained.value:.3f}"
    above = "above isotropic chance, as atoms of anisotropic data are too"
    found = standing(m)
    return f"{told}: {above if found == 'aligned' else found}"


def control_sentence(control: Measure | None, *, given: bool) -> str:
    """How a second dictionary of base activations stands against the reference, and what that makes of the figure.

    Args:
        control: mean max-cosine of the base control, against atoms that know the base activations' covariance; None where there is none.
        given: the reference was not fitted here, and the control has another recipe.
    """
    if control is None:
        return "No base control was fitted (diverge.controls=base), so whether the figure can see alignment is not known"
    who = f"The base control (a second dictionary of base activations{OTHER_RECIPE if given else ''})"
    if control.value is None or control.null is None:
        why = f": {control.reason}" if control.reason else ""
        return f"{who} has no such figure{why}, so whether the figure can see alignment is not known"
    found = standing(control)
    return f"{who} reaches {control:.3f}, atoms of the base activations' covariance {control.null:.3f}: {found}, {_WORTH[found]}"


OTHER_RECIPE = ", by the grid's first recipe and not the reference's"
"""Said of the base control beside a reference that was given."""
_WORTH: Mapping[Standing, str] = {
    "aligned": "so the figure can see alignment",
    "at chance": "so the figure says nothing of an adapter",
    "not to be told from chance": "so whether the figure says anything of an adapter is not known",
}


def control_statement(by_layer: Mapping[int, Measure], *, given: bool) -> str:
    """The same of all layers, in one sentence to stand under the verdicts; nothing where there is no control."""
    groups: dict[Standing, list[str]] = {}
    for layer, m in sorted(by_layer.items()):
        beside = f" ({m:.2f}, null {m.null:.2f})" if m.value is not None and m.null is not None else ""
        groups.setdefault(standing(m), []).append(f"{layer}{beside}")
    if not groups:
        return ""
    told = "; ".join(
        f"{found} at layer{'s' if len(where) > 1 else ''} {', '.join(where)}, {_WORTH[found]} there" for found, where in groups.items()
    )
    recipe = OTHER_RECIPE if given else ""
    return f"Mean max-cosine of the base control (a second dictionary of base activations{recipe}) with the reference: {told}."
