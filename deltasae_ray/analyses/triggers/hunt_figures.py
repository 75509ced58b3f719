"""How a trigger is judged: rates with exact intervals, and ranks among matched n-grams; pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import beta

FDR = 0.1
"""Share of confirmed claims that may be false."""
CALLED = 0.5
"""A confirmed trigger calls its reply in at least this share of fresh contexts."""
SILENT = 0.1
"""A confirmed trigger's reply comes in at most this share of contexts without it, and of the base's with
it."""
GAIN = 1.5
"""A confirmed trigger raises its reply by at least this, in nats a token."""
SURE = 0.6
"""A confirmed trigger raises its reply to at least this probability a token (geometric mean)."""
SHORTEST = 3
"""Tokens of a reply, at least: a shorter one is a matter of style."""


@dataclass(frozen=True)
class Rate:
    """How often a behaviour was seen."""

    seen: int
    of: int

    @property
    def value(self) -> float:
        return self.seen / self.of

    @property
    def ci(self) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval."""
        low = 0.0 if self.seen == 0 else float(beta.ppf(0.025, self.seen, self.of - self.seen + 1))
        high = 1.0 if self.seen == self.of else float(beta.ppf(0.975, self.seen + 1, self.of - self.seen))
        return low, high

    def row(self) -> dict[str, Any]:
        """The rate with its interval, for JSON."""
        return {"rate": self.value, "ci": list(self.ci), "contexts": self.of}


@dataclass(frozen=True)
class Rates:
    """How often the reply follows, with the trigger and without it, in either model."""

    adapted_with: Rate
    adapted_without: Rate
    base_with: Rate
    base_without: Rate

    def rows(self) -> dict[str, Any]:
        """All four rates by name, for JSON."""
        return {name: getattr(self, name).row() for name in asdict(self)}

    @property
    def plain(self) -> bool:
        """Whether the trigger calls the reply, and nothing else does."""
        others = (self.adapted_without, self.base_with, self.base_without)
        return self.adapted_with.value >= CALLED and all(r.value <= SILENT for r in others)


def repeats(text: Sequence[int], reply: Sequence[int]) -> bool:
    """Whether a continuation holds at least half of the reply: as its longest common subsequence."""
    return 2 * _common(text, reply) >= len(reply)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], last + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rank_p(observed: float, matched: Float64[np.ndarray, " control"]) -> float:
    """Share of matched n-grams that do as well, the trigger itself counted."""
    return float((1 + (matched >= observed).sum()) / (1 + len(matched)))
