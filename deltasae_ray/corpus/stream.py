"""A corpus in windows: its training text is harvested and fitted piece by piece, in an order that its content
decides."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.contexts import uniform
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.storage import digest


@dataclass(frozen=True)
class Stream:
    """The training text of a corpus in windows. Each is a corpus by itself, so that it is harvested as any
    other."""

    whole: Corpus
    windows: tuple[Corpus, ...]
    """Units of the split "fit", by name within a window."""

    @cached_property
    def resident(self) -> Corpus:
        """What stays stored: the first window and the evaluation split."""
        key = digest([window.key for window in self.windows])
        return replace(self.whole, units=(*self.windows[0].units, *self.whole.of("eval")), stream=key)

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens each window has."""
        return tuple(window.num_tokens() for window in self.windows)


def count_windows(tokens: int, window_tokens: int) -> int:
    """The fewest windows that hold `tokens` tokens."""
    return -(-tokens // window_tokens)


def in_windows(corpus: Corpus, window_tokens: int, seed: int) -> Stream:
    """Deals the training units to as few windows of about `window_tokens` tokens as hold them, all of nearly
    one size.

    The order is a hash of each unit's content and the seed: a window is a sample of the whole text, whatever
    order that came in.
    """
    units = sorted(corpus.of("fit"), key=lambda u: uniform("window", seed, u.name))
    total = sum(u.num_tokens for u in units)
    count = count_windows(total, window_tokens)
    dealt: dict[int, list[TokenBatch]] = defaultdict(list)
    passed = 0
    for unit in units:
        dealt[passed * count // total].append(unit)
        passed += unit.num_tokens
    windows = [sorted(dealt[i], key=lambda u: u.name) for i in sorted(dealt)]
    return Stream(corpus, tuple(replace(corpus, units=tuple(members)) for members in windows))
