"""What a decision says: every repeating latent with its label, the share that is not visible, and the
one rule on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from deltasae_ray.metrics.geometry.latent_shares import REPEATS
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.visibility.calibration import Calibration
from deltasae_ray.metrics.visibility.decision import (
    FEWEST,
    Judged,
    Label,
    LatentLabel,
    fitting,
    label_of,
    unfitting,
)
from deltasae_ray.metrics.visibility.expression import Scale
from deltasae_ray.metrics.visibility.kept import Kept
from deltasae_ray.metrics.visibility.leading import DirectionVisibility
from deltasae_ray.metrics.visibility.narrow import Narrow
from deltasae_ray.metrics.visibility.resampled import Draw, counted, likely_shares, share_interval
from deltasae_ray.metrics.visibility.scaling import Scaling


@dataclass(frozen=True)
class LatentVisibility:
    """What is known of one latent of the delta dictionary."""

    index: int
    """Position in the dictionary."""
    label: LatentLabel
    p: float | None
    """Probability that a latent of a base dictionary is expressed as badly; None where it was not judged."""
    q: float | None
    """p corrected over the judged latents (Benjamini and Hochberg)."""
    scaling: Scaling | None
    """What it does to the base activations; None where that cannot be told."""
    firings: int
    """On training and evaluation rows together."""


@dataclass(frozen=True)
class Visibility:
    """Whether the reference can see a change, with the latents that decide it."""

    label: Label
    share: Measure
    """f, the share of judged latents that are not visible."""
    features: tuple[float, float]
    """Share of the change's features that the reference holds, as an interval, read through planted
    mixtures."""
    latents: tuple[LatentVisibility, ...]
    """Every repeating latent, in the dictionary's order."""
    reasons: tuple[str, ...]
    """What limits the answer, in words."""
    directions: tuple[DirectionVisibility, ...] = ()
    """Principal directions with a tenth of the variance or more, each judged by itself; of a narrow change
    all its directions."""
    calibration: Calibration | None = None
    """The curve that `features` is read from; None where there is no share to read."""
    judged_on: Literal["latents", "directions"] = "latents"
    """What `share` counts: a narrow change is judged on its directions."""
    draws: tuple[Draw, ...] = ()
    """How many latents are not visible by other seeds and other base dictionaries; empty where `share` is no
    sample of latents."""

    @property
    def named(self) -> tuple[LatentVisibility, ...]:
        """The latents that are not visible, whatever the label."""
        return tuple(x for x in self.latents if x.label == "not visible")


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found of the latents that can be judged, in their order."""

    judged: Judged
    labels: Sequence[LatentLabel]
    kinds: Sequence[Scaling | None]
    scale: Scale
    lost_scale: Scale
    """The same with flips of the latents that are not expressed, which may lie elsewhere than the others
    do."""
    once: Float[np.ndarray, " latent"]
    """Weights by which latents of one feature count once."""
    draws: tuple[Draw, ...]
    """The counts by other seeds and base dictionaries."""


def answer(
    kept: Kept,
    findings: Findings | None,
    apart: Narrow | tuple[DirectionVisibility, ...],
    reasons: Sequence[str],
    seed: int,
) -> Visibility:
    """Puts labels on the latents, and the rule on their share, or on that of a narrow change's directions.

    Args:
        apart: a narrow change, or the leading directions of a wider one.
    """
    latents, directions = _latents(kept, findings), apart.judged if isinstance(apart, Narrow) else apart
    notes = [*reasons]
    narrow = isinstance(apart, Narrow)
    if directions and not narrow:
        listed = ", ".join(f"{x.variance:.0%} of the variance {x.label}" for x in directions)
        notes.append(f"leading directions, each by itself: {listed}")
    if narrow and apart.outside(kept.directions[kept.able], REPEATS) < FEWEST:
        return _of_directions(apart, latents, notes)
    sure = sum(x.label != "cannot be judged" for x in latents)
    if findings is None or sure < FEWEST:
        notes.append(f"{sure} latents are judged, {FEWEST} are needed for a label")
        return Visibility(
            "INCONCLUSIVE", undefined(notes[-1], n=sure), (0.0, 1.0), latents, tuple(notes), directions
        )
    return _of_latents(
        findings,
        Visibility("INCONCLUSIVE", undefined(""), (0.0, 1.0), latents, tuple(notes), directions),
        seed,
    )


def _of_directions(
    narrow: Narrow, latents: tuple[LatentVisibility, ...], reasons: Sequence[str]
) -> Visibility:
    """The rule on all directions of a narrow change: a count, not a sample."""
    interval, n = narrow.interval(), len(narrow.judged)
    lost = sum(x.label == "not visible" for x in narrow.judged)
    sure = sum(x.label != "cannot be judged" for x in narrow.judged)
    notes = [*reasons, narrow.in_words]
    label = fitting(interval)
    if label == "INCONCLUSIVE":
        notes.append(unfitting(interval))
    share = (
        Measure(lost / sure, null=0.0, ceiling=1.0, ci=interval, n=n) if sure else undefined(notes[-1], n=n)
    )
    features = 1 - interval[1], 1 - interval[0]
    return Visibility(label, share, features, latents, tuple(notes), narrow.judged, judged_on="directions")


def _of_latents(findings: Findings, so_far: Visibility, seed: int) -> Visibility:
    """The rule on the share of latents, and that share read as one of features."""
    notes, n = [*so_far.reasons], len(findings.labels)
    named = len(so_far.named)
    sure = sum(x.label != "cannot be judged" for x in so_far.latents)
    unsure = int(findings.judged.lost.sum()) - named
    if unsure:
        notes.append(
            f"{unsure} latents score as low as absent ones, and so do base latents: they widen the interval"
        )
    draws = findings.draws or counted(named, named + unsure, n)
    interval = share_interval(draws)
    label = label_of(interval, sure)
    if label == "INCONCLUSIVE":
        notes.append(unfitting(interval))
    share = Measure(named / sure, null=0.0, ceiling=1.0, ci=interval, n=sure)
    once = findings.once
    f = float((once * findings.judged.named).sum() / once.sum())
    curves = [
        Calibration.planted(float(once.sum()), scale, np.random.default_rng([seed, 15]))
        for scale in (findings.scale, findings.lost_scale)
    ]
    read = [curve.read(x) for curve in curves for x in (f, *likely_shares(draws))]
    features = min(low for low, _ in read), max(high for _, high in read)
    return replace(
        so_far,
        draws=draws,
        label=label,
        share=share,
        features=features,
        reasons=tuple(notes),
        calibration=curves[0],
    )


def _latents(kept: Kept, findings: Findings | None) -> tuple[LatentVisibility, ...]:
    """Every repeating latent; those that could not be judged without figures."""
    latents = [
        LatentVisibility(int(index), "cannot be judged", None, None, None, int(firings))
        for index, firings in zip(kept.index, kept.firings, strict=True)
    ]
    if findings is not None:
        figures = zip(findings.labels, findings.judged.p, findings.judged.q, findings.kinds, strict=True)
        for at, (label, p, q, kind) in zip(np.flatnonzero(kept.able), figures, strict=True):
            latents[at] = LatentVisibility(
                latents[at].index, label, float(p), float(q), kind, latents[at].firings
            )
    return tuple(latents)
