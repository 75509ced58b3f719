"""A card as a value: a question, its answer in a word with a sign, one number, and the number's place between
chance and the best that could be."""

from dataclasses import dataclass
from typing import Literal

from deltasae_ray.analyses.behaviour.figures import MIN_KL
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.report.wording import figure, interval

Tone = Literal["good", "warn", "bad", "alert", "plain", "unknown"]
"""How a word is coloured; its sign says the same."""
SIGNS: dict[Tone, str] = {"good": "✓", "warn": "◐", "bad": "✕", "alert": "▲", "plain": "●", "unknown": "?"}


@dataclass(frozen=True)
class Strip:
    """A number's place on the scale of its question, in percent of its length."""

    value: float
    low: float | None
    high: float | None
    null: float | None
    ceiling: float | None
    label: str
    """The same in words."""


@dataclass(frozen=True)
class Card:
    """One question of one adapter, answered."""

    question: str
    number: str
    unit: str
    """What the number is, in a few words."""
    tone: Tone
    word: str
    """The answer."""
    note: str
    term: str
    """Key of its explanation in the glossary."""
    strip: Strip | None = None

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]


def strip_of(m: Measure, most: float = 1.0, chance: str = "by chance") -> Strip | None:
    """Places on a scale from 0 to `most`; what lies beyond stands at its end."""
    if m.value is None or most <= 0:
        return None

    def at(x: float | None) -> float | None:
        return None if x is None else round(100 * min(1.0, max(0.0, x / most)), 2)

    low, high = m.ci or (None, None)
    label = f"{figure(m.value)} {interval(low, high)} on a scale from 0 to {figure(most)}"
    label += "" if m.null is None else f"; {chance} {figure(m.null)}"
    return Strip(at(m.value) or 0.0, at(low), at(high), at(m.null), at(m.ceiling), label)


def percent_of(value: float | None) -> str:
    """A share in whole percent."""
    if value is None:
        return "–"
    return f"{round(100 * value) or 0}\u00a0%".replace("-", "−")


def sure_of(m: Measure, *, percent: bool = False) -> str:
    """The interval of a figure in brackets."""
    if m.ci is None:
        return "no interval"
    low, high = m.ci
    return f"{percent_of(low)} to {percent_of(high)}" if percent else f"{nats(low)} to {nats(high)}"


def nats(value: float | None) -> str:
    """A figure without powers of ten, down to a tenth of what counts."""
    return figure(value) if value is None or abs(value) >= MIN_KL else f"{value:.4f}"
