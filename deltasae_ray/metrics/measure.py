"""What every figure of this product is: a value that never stands without its null and, where one exists, its
ceiling."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

Part = Literal["value", "null", "ceiling", "ci", "p", "kappa", "kappa_ci", "note"]
"""What a reason is about: a part of a measure that is missing, or `note`, what must be known of one that is
there."""


@dataclass(frozen=True)
class Measure:
    """One figure with everything it must be read against. Nothing in it is ever NaN or infinite.

    `value is None` means undefined, and then a reason says why. A defined value may carry reasons too: why a
    part beside it (an interval, a kappa) is missing, or which ceiling it was given.
    """

    value: float | None
    """The figure, in the unit that the catalogue names; None where it is undefined."""
    null: float | None = None
    """The figure where there is nothing to find (the catalogue says how the null is made)."""
    ceiling: float | None = None
    """The best that could be expected: the same figure between two dictionaries or halves that should
    agree."""
    ci: tuple[float, float] | None = None
    """95 % interval of the value; None where it is undefined (under 30 evaluation documents)."""
    p: float | None = None
    """Probability of a value as extreme as this under the null, in the tail that the catalogue names."""
    kappa: float | None = None
    """(value - null) / (ceiling - null); None where the ceiling is too close to the null to divide by."""
    n: int = 0
    """What was counted: documents, tokens or latents, as the catalogue says."""
    kappa_ci: tuple[float, float] | None = None
    """95 % interval of kappa, from resamples in which value, null and ceiling move together."""
    reasons: tuple[tuple[Part, str], ...] = ()
    """(part, why it is missing or what must be known of it), in the order in which they were found."""

    def __post_init__(self) -> None:
        intervals = [pair for pair in (self.ci, self.kappa_ci) if pair is not None]
        ends = [x for pair in intervals for x in pair]
        numbers = [
            x for x in (self.value, self.null, self.ceiling, *ends, self.p, self.kappa) if x is not None
        ]
        assert all(math.isfinite(x) for x in numbers), f"a measure must be finite or undefined: {self}"
        assert all(low <= high for low, high in intervals), f"an interval must ascend: {intervals}"
        assert self.kappa_ci is None or self.kappa is not None, (
            f"an interval of a kappa that is undefined: {self.kappa_ci}"
        )
        assert self.p is None or 0 <= self.p <= 1, f"p must be in [0, 1]: {self.p}"
        assert self.value is not None or self.reasons, "an undefined measure must say why"

    def __format__(self, spec: str) -> str:
        """`f"{m:.2f}"` gives `0.55 [0.42, 0.68]`, or `undefined (why)`."""
        if self.value is None:
            return f"undefined ({self.reason})"
        spec = spec or ".3g"
        interval = f" [{self.ci[0]:{spec}}, {self.ci[1]:{spec}}]" if self.ci else ""
        return f"{self.value:{spec}}{interval}"

    @property
    def reason(self) -> str:
        """All reasons in one line, for a person."""
        return "; ".join(why for _, why in self.reasons)

    def why(self, part: Part) -> str:
        """The reason that concerns one part; empty where there is none."""
        return next((why for about, why in self.reasons if about == part), "")

    def because(self, part: Part, why: str) -> "Measure":
        """The measure with a reason added to those it has; an empty one adds nothing."""
        return replace(self, reasons=(*self.reasons, (part, why))) if why else self

    def within(self, low: float, high: float) -> "Measure":
        """The measure with an interval."""
        return replace(self, ci=(low, high))

    def to_dict(self) -> dict:
        """The measure as a dict for JSON; `msgspec.convert(value, Measure)` makes the measure of it again."""
        return asdict(self)


def undefined(reason: str, *, null: float | None = None, ceiling: float | None = None, n: int = 0) -> Measure:
    """A measure without a value; `reason` says why in words a user can act on."""
    return Measure(None, null=null, ceiling=ceiling, n=n, reasons=(("value", reason),))
