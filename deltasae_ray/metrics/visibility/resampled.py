"""How the share of latents that are not visible moves with the seed of the delta dictionary and with the base
dictionaries.

These are the outer levels of a nested bootstrap: base dictionaries and seeds are drawn with replacement, and
every latent is judged again by what was drawn. Of n dictionaries n - 1 are drawn, since as many as there are
would vary by (n - 1)/n of the variance only (Rao & Wu 1988), and n is two or three. The inner level, latents,
needs no drawing: `share_interval` mixes the posteriors of all draws.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import betainc

from deltasae_ray.metrics.visibility.decision import judge
from deltasae_ray.metrics.visibility.expression import Scale
from deltasae_ray.metrics.visibility.presence import FEWEST_PRESENT, Present, without_unseen

EXACT = 4
"""Dictionaries or seeds up to which all ways to draw them are taken; above, `DRAWN` at random."""
DRAWN = 60


@dataclass(frozen=True)
class Draw:
    """What one draw of seeds and base dictionaries says of the latents; means over the seeds drawn."""

    weight: float
    """Probability of the draw."""
    low: float
    """Latents that are not visible."""
    high: float
    """Those that score as absent ones do, whether or not base latents do too."""
    n: float
    """Latents."""
    f: float
    """Share not visible, where latents of one feature count once."""


def draws_of(
    scores: Sequence[Float[np.ndarray, " latent"]],
    present: Present,
    absent: Float[np.ndarray, " flip"],
    once: Float[np.ndarray, " latent"],
    seed: int,
) -> tuple[Draw, ...]:
    """Judges the latents by every draw of base dictionaries and of seeds.

    Args:
        scores: of the same latents, as each seed has them.
        present: scores of base latents, by base dictionary.
        absent: scores of flipped directions, ascending.
        once: weight of each latent, so that those of one feature count once.
    """
    rng, counter = np.random.default_rng([seed, 18]), Counter[tuple[float, float, float]]()
    for weight, bases in _multisets(present.many, rng):
        scale = _scale(present, bases, absent)
        if scale is None:
            continue
        by_seed = [_counts(x, scale, once) for x in scores]
        for part, seeds in _multisets(len(scores), rng):
            mean = np.mean([by_seed[s] for s in seeds], axis=0)
            counter[tuple(mean.tolist())] += weight * part  # type: ignore[index]
    total = sum(counter.values())
    n = float(len(once))
    return tuple(Draw(weight / total, low, high, n, f) for (low, high, f), weight in counter.items())


def _counts(scores: np.ndarray, scale: Scale, once: np.ndarray) -> tuple[float, float, float]:
    judged = judge(scores, scale)
    return float(judged.named.sum()), float(judged.lost.sum()), float(once @ judged.named / once.sum())


def _scale(present: Present, bases: Sequence[int], absent: np.ndarray) -> Scale | None:
    """The scale by some base dictionaries, each as often as it is drawn; None where they say too little."""
    scores = np.sort(np.concatenate([present.scores[present.base == b] for b in bases]))
    if len(scores) < FEWEST_PRESENT:
        return None
    scale = Scale(scores, absent)
    return without_unseen(scale) if scale.separates else None


def _multisets(n: int, rng: np.random.Generator) -> Iterator[tuple[float, Sequence[int]]]:
    """(Probability, which) of n - 1 drawn from n with replacement."""
    size = max(1, n - 1)
    if n > EXACT:
        yield from ((1 / DRAWN, rng.integers(0, n, size).tolist()) for _ in range(DRAWN))
        return
    for some in combinations_with_replacement(range(n), size):
        ways = factorial(size) / prod(factorial(x) for x in Counter(some).values())
        yield ways / n**size, some


def share_interval(draws: Sequence[Draw], comparisons: int = 1) -> tuple[float, float]:
    """Computes the 95 % interval of the share of latents that are not visible.

    Each draw has Jeffreys' posterior of a share; the interval has the tails of their mixture, the lower one
    by the latents that are surely not visible, the upper one by all that may be.

    Args:
        comparisons: intervals that are to hold at once, such as one for each layer (Bonferroni).
    """
    weight, low, high, n = np.array([(x.weight, x.low, x.high, x.n) for x in draws]).T
    tail = 0.025 / comparisons
    first = _quantile(tail, weight, low, n) if low.any() else 0.0
    last = _quantile(1 - tail, weight, high, n) if (high < n).any() else 1.0
    return first, last


def _quantile(q: float, weight: np.ndarray, count: np.ndarray, n: np.ndarray) -> float:
    def above(x: float) -> float:
        return float(weight @ betainc(count + 0.5, n - count + 0.5, x)) - q

    return float(brentq(above, 0.0, 1.0, xtol=1e-12))  # pyright: ignore[reportArgumentType]


def likely_shares(draws: Sequence[Draw]) -> tuple[float, float]:
    """Ends of the middle 95 % of the draws' shares of features."""
    ordered = sorted(draws, key=lambda x: x.f)
    f, upto = np.array([x.f for x in ordered]), np.cumsum([x.weight for x in ordered])
    first, last = np.searchsorted(upto, [0.025, 0.975])
    return float(f[first]), float(f[min(last, len(f) - 1)])


def counted(low: int, high: int, n: int) -> tuple[Draw, ...]:
    """Counts that no seed and no base dictionary moves."""
    return (Draw(1.0, low, high, n, low / n),)


def moved(low: int, high: int, n: int, draws: Sequence[Draw], own: tuple[int, int, int]) -> tuple[Draw, ...]:
    """Counts of some of the latents, moved by seeds and base dictionaries as all of them are.

    Args:
        draws: of all latents.
        own: low, high and n of all latents, by the dictionaries at hand.
    """
    moved_latents = []
    for x in draws:
        down, up = x.low / x.n - own[0] / own[2], x.high / x.n - own[1] / own[2]
        first, last = (min(float(n), max(0.0, c + n * by)) for c, by in ((low, down), (high, up)))
        moved_latents.append(Draw(x.weight, first, max(first, last), n, first / n))
    return tuple(moved_latents) or counted(low, high, n)
