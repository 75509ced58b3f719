"""From scores to labels: which latents are visible, what share is not, and what that says about the
features."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import false_discovery_control

from deltasae_ray.metrics.visibility.expression import Scale

Label = Literal["VISIBLE", "PARTLY VISIBLE", "NOT VISIBLE", "INCONCLUSIVE"]
LatentLabel = Literal["visible", "partly", "not visible", "cannot be judged"]

RATE = 0.05
"""False discovery rate at which a latent counts as one that base latents do not resemble."""
FEWEST = 10
"""Judged latents below which the label is INCONCLUSIVE."""
VISIBLE, NOT_VISIBLE, PARTLY = 0.1, 0.5, (0.05, 0.9)
"""Upper end of f for VISIBLE, lower end for NOT VISIBLE, and the range that its interval lies inside for
PARTLY VISIBLE."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Latents against the scale: probabilities, corrected ones, and what they say."""

    p: Float[np.ndarray, " latent"]
    q: Float[np.ndarray, " latent"]
    labels: tuple[LatentLabel, ...]
    lost: Bool[np.ndarray, " latent"]
    """Not expressed, whether or not base latents score as low: these cannot be judged where they do."""

    @property
    def named(self) -> Bool[np.ndarray, " latent"]:
        return np.array([label == "not visible" for label in self.labels], dtype=bool)


def judge(scores: Float[np.ndarray, " latent"], scale: Scale) -> Judged:
    """Labels latents by their scores.

    Not visible: base latents score as low too rarely (q at most .05), and no more is expressed than of
    absent ones.
    Partly: too low as well, but some of it is expressed. Visible: as base latents are.
    """
    p = scale.p(scores)
    q = false_discovery_control(p) if len(p) else p
    lost = scores < scale.bar
    labels: list[LatentLabel] = []
    for unlike, gone, near in zip(q <= RATE, lost, scores >= scale.enough, strict=True):
        if gone:
            labels.append("not visible" if unlike else "cannot be judged")
        else:
            labels.append("partly" if unlike and not near else "visible")
    return Judged(p, q, tuple(labels), lost)


def label_of(interval: tuple[float, float], judged: int) -> Label:
    """The one rule, from the interval of the share of judged latents that are not visible."""
    return "INCONCLUSIVE" if judged < FEWEST else fitting(interval)


def fitting(interval: tuple[float, float]) -> Label:
    """The label that an interval of f fits, whatever it counts."""
    low, high = interval
    if high <= VISIBLE:
        return "VISIBLE"
    if low >= NOT_VISIBLE:
        return "NOT VISIBLE"
    return "PARTLY VISIBLE" if low > PARTLY[0] and high < PARTLY[1] else "INCONCLUSIVE"


def unfitting(interval: tuple[float, float]) -> str:
    """Why an interval of f gives no label."""
    return f"the interval [{interval[0]:.2f}, {interval[1]:.2f}] of the share not visible fits no label"
