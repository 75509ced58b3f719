"""Dictionaries of like sizes: many atoms explain more than few, whatever they are, so the larger of two that
are compared is cut."""

from dataclasses import dataclass, replace

from deltasae_ray.metrics.coding.dictionary_coding import Coding, Structure
from deltasae_ray.metrics.coding.sample import Average

MAX_SIZE_RATIO = 4.0
"""The larger dictionary is cut to this many times the smaller."""
MAX_SIZE_EFFECT = 0.1
"""If the cut changes V by more than this, the answer would be one about sizes."""


@dataclass(frozen=True, eq=False)
class Sized:
    """One side of a comparison: a dictionary whole, or cut to the atoms that it uses most."""

    name: str
    whole: Coding
    used: Coding

    @classmethod
    def of(cls, name: str, coding: Coding, size: int) -> "Sized":
        return cls(name, coding, coding if coding.size <= size else coding.cut(size))

    def __str__(self) -> str:
        if self.used is self.whole:
            return f"the {self.whole.size} atoms of the {self.name}"
        return f"the {self.used.size} most used of the {self.whole.size} atoms of the {self.name}"

    @property
    def is_cut(self) -> bool:
        return self.used.size < self.whole.size

    def structure(self, average: Average = "energy") -> Structure:
        """V of the atoms that are compared."""
        structure = self.used.structure(average)
        return (
            replace(structure, measure=structure.measure.because("note", f"by {self}"))
            if self.is_cut
            else structure
        )

    def refused(self, average: Average) -> str:
        """Why the cut dictionary cannot stand for the whole one; empty where it can."""
        if not self.is_cut:
            return ""
        before, after = (c.structure(average).measure.value or 0.0 for c in (self.whole, self.used))
        if abs(before - after) <= MAX_SIZE_EFFECT:
            return ""
        return f"{self} give V {after:.2f}, all give {before:.2f}"


@dataclass(frozen=True, eq=False)
class Matched:
    """A delta dictionary, what is held against it, and a second delta dictionary, cut to like sizes."""

    delta: Sized
    reference: Sized
    second: Sized | None = None
    """Of the size of the delta dictionary."""

    @property
    def participation(self) -> float:
        """Directions in which the deltas live."""
        return self.delta.whole.coder.participation

    def against(self, name: str, control: Coding) -> "Matched":
        """A control in the place of the reference: cut to the reference's size, so that only what it knows
        differs."""
        return match_sizes(self.delta.whole, control, name=name, most=self.reference.used.size)


def match_sizes(
    delta: Coding,
    reference: Coding,
    second: Coding | None = None,
    *,
    name: str = "reference",
    most: int | None = None,
    ratio: float = MAX_SIZE_RATIO,
) -> Matched:
    """Both cut to at most `ratio` times the smaller.

    Args:
        second: another delta dictionary, cut to the size of the first.
        name: what is held against the delta dictionary.
        most: atoms that it may have in any case.
    """
    allowed = min(reference.size, most or reference.size)
    limit = int(ratio * min(delta.size, allowed))
    ours = Sized.of("delta dictionary", delta, limit)
    twin = None if second is None else Sized.of("second delta dictionary", second, ours.used.size)
    return Matched(ours, Sized.of(name, reference, min(limit, allowed)), twin)
