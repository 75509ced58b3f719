"""How many latents of one dictionary are visible, and the shares that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.visibility.answer import LatentVisibility
from deltasae_ray.metrics.visibility.resampled import Draw, counted, moved, share_interval


@dataclass(frozen=True)
class Counts:
    """Latents of one dictionary by what is said of them."""

    not_visible: int = 0
    unsure: int = 0
    """They score as absent ones do, and so do latents of base dictionaries: they widen intervals."""
    partly: int = 0
    visible: int = 0
    draws: tuple[Draw, ...] = ()
    """Those that are not visible by other seeds and base dictionaries, where that is known."""

    @classmethod
    def of(cls, latents: Sequence[LatentVisibility], draws: tuple[Draw, ...] = ()) -> "Counts":
        """Counts those that could be held against the scale."""
        labels = [x.label for x in latents if x.p is not None]
        named = ("not visible", "cannot be judged", "partly", "visible")
        return cls(*(labels.count(label) for label in named), draws=draws)  # type: ignore[arg-type]

    @property
    def ends(self) -> tuple[int, int, int]:
        """Latents that are not visible, those that may not be, and all."""
        return self.not_visible, self.not_visible + self.unsure, self.judged + self.unsure

    def within(self, whole: "Counts") -> "Counts":
        """Counts of a part of the latents, moved by seeds and base dictionaries as the whole is."""
        if not self.judged or not whole.draws:
            return self
        return replace(self, draws=moved(*self.ends, whole.draws, whole.ends))

    def times(self, factor: int) -> "Counts":
        """The counts of `n` times as many latents, with the same shares."""
        numbers = (factor * x for x in (self.not_visible, self.unsure, self.partly, self.visible))
        grown = (Draw(x.weight, factor * x.low, factor * x.high, factor * x.n, x.f) for x in self.draws)
        return Counts(*numbers, draws=tuple(grown))

    @property
    def judged(self) -> int:
        return self.not_visible + self.partly + self.visible

    def not_visible_share(self, comparisons: int = 1) -> Measure:
        """Computes f, the share of judged latents that are not visible, with its interval.

        Args:
            comparisons: intervals that are to hold at once, such as one for each layer.
        """
        return self._share(self.not_visible, self.draws, comparisons)

    def visible_share(self, comparisons: int = 1) -> Measure:
        """Computes the share of judged latents that are visible, alike."""
        return self._share(self.visible, (), comparisons)

    def _share(self, count: int, draws: Sequence[Draw], comparisons: int) -> Measure:
        if not self.judged:
            return undefined("no latent can be judged")
        measure = Measure(count / self.judged, n=self.judged).because("note", self.in_words)
        draws = draws or counted(count, count + self.unsure, self.judged + self.unsure)
        return measure.within(*share_interval(draws, comparisons))

    @property
    def in_words(self) -> str:
        """The counts in a line, such as `4 not visible, 3 partly, 21 visible`."""
        counted = f"{self.not_visible} not visible, {self.partly} partly, {self.visible} visible"
        return counted + (f", {self.unsure} unclear" if self.unsure else "")
