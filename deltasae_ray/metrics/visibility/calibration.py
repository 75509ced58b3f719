"""Reads the share of latents that are not visible as a share of features, through mixtures that are
planted."""

from dataclasses import dataclass

import numpy as np

from deltasae_ray.metrics.visibility.decision import RATE
from deltasae_ray.metrics.visibility.expression import Scale

GRID = tuple(np.linspace(0, 1, 51).tolist())
"""Shares of the features in the reference at which mixtures are planted."""
MIXTURES = 120
LEVEL = 0.95


@dataclass(frozen=True)
class Calibration:
    """What share of latents is found not visible where the reference holds a known share of the features."""

    held: tuple[float, ...]
    """Share of the features that the reference holds."""
    low: tuple[float, ...]
    middle: tuple[float, ...]
    """Mean share of latents that are then found not visible; `low` and `high` are the ends of its middle
    95 %."""
    high: tuple[float, ...]

    @classmethod
    def planted(cls, effective: float, scale: Scale, rng: np.random.Generator) -> "Calibration":
        """Plants mixtures on the scale of the study, and judges them by the rule that judges the change.

        Of the latents a share scores as base latents do, the others as flipped ones.

        Args:
            effective: latents judged, those of one feature counted once.
        """
        n = max(1, round(effective))
        held = rng.random((len(GRID), MIXTURES, n)) < np.array(GRID)[:, None, None]
        scores = np.concatenate([scale.present, scale.absent])
        p, lost = scale.p(scores), scores < scale.bar
        present = rng.integers(0, len(scale.present), size=held.shape)
        absent = len(scale.present) + rng.integers(0, len(scale.absent), size=held.shape)
        drawn = np.where(held, present, absent)
        chance = p[drawn]
        ordered = np.sort(chance, axis=2)
        passed = (
            ordered <= RATE * np.arange(1, n + 1) / n
        )  # Benjamini and Hochberg: all up to the last that passes
        limit = np.where(passed, ordered, -1.0).max(2, keepdims=True)
        detected = ((chance <= limit) & lost[drawn]).mean(2)
        low, high = np.quantile(detected, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
        return cls(GRID, *(tuple(x.tolist()) for x in (low, detected.mean(1), high)))

    def read(self, f: float) -> tuple[float, float]:
        """Finds the interval of shares of features whose mixtures give f."""
        fits = [
            x
            for x, low, high in zip(self.held, self.low, self.high, strict=True)
            if low - 1e-9 <= f <= high + 1e-9
        ]
        nearest = self.held[int(np.argmin(np.abs(np.array(self.middle) - f)))]
        low, high = (min(fits), max(fits)) if fits else (nearest, nearest)
        step = (self.held[1] - self.held[0]) / 2
        return max(0.0, low - step), min(1.0, high + step)
