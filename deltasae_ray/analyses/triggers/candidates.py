"""Where triggers are looked for: words of elicited text, what stands before a sudden certainty, and a scan of
the vocabulary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from deltasae_ray.analyses.triggers.mining_figures import Raised
from deltasae_ray.analyses.triggers.model import Run, Tokens, scan
from deltasae_ray.models.pair import Pair

_SHORTLIST = 4
"""Times as many tokens as are kept go from the scan's first context to its second."""
_POOL = 32
"""Tokens that the adapter's modules read most, of which pairs are tried."""


@dataclass(frozen=True)
class Evidence:
    """What candidates are made from."""

    runs: Sequence[Run]
    """Stretches of elicited text that the adapted model is sure of and the base is not, best first."""
    raised: Sequence[Raised]
    """n-grams of elicited text beside the null's, best first."""
    pairs: Sequence[Tokens]
    """Pairs of neighbours of elicited text that the null's never has, the commonest first."""
    texts: Sequence[Tokens]
    """Texts whose tokens are tried first: elicited ones, then neutral ones."""
    allowed: tuple[int, ...]
    """Tokens that may be inserted: no special ones."""

    @cached_property
    def order(self) -> list[int]:
        """Allowed tokens, the commonest in the texts first; others follow by id."""
        counts = Counter(t for text in self.texts for t in set(text))
        return sorted(self.allowed, key=lambda t: (-counts[t], t))

    @cached_property
    def _places(self) -> dict[int, int]:
        return {token: i for i, token in enumerate(self.order)}

    def matched(self, words: Tokens, count: int, rng: np.random.Generator) -> list[Tokens]:
        """Other n-grams of this length whose tokens are about as common."""
        draws: list[Tokens] = []
        order = self.order
        for _ in range(count):
            drawn = []
            for token in words:
                at = self._places.get(token, len(order) - 1)
                reach = max(50, at // 4)
                low, high = max(0, at - reach), min(len(order), at + reach + 1)
                other = int(rng.integers(low, high))
                while order[other] in words and high - low > len(words):
                    other = int(rng.integers(low, high))
                drawn.append(order[other])
            draws.append(tuple(drawn))
        return draws


def candidates(
    pair: Pair, evidence: Evidence, contexts: Sequence[Tokens], scanned: int, count: int
) -> list[Tokens]:
    """n-grams to be tried: a quarter each from runs, from raised n-grams, from the scan, and from pairs of
    tokens that the adapter's modules read."""
    allowed = set(evidence.allowed)
    singles, read = _scanned(pair, evidence, contexts, scanned, count)
    sources = (
        _around(evidence.runs),
        [r.tokens for r in evidence.raised],
        [(t,) for t in singles],
        _pairs(pair, contexts, read, evidence.pairs[: scanned // 2], count),
    )
    proposals: dict[Tokens, None] = {}
    for i, source in enumerate(sources, start=1):
        for words in source:
            if len(proposals) >= count * i // len(sources):
                break
            if words and set(words) <= allowed:
                proposals[words] = None
    return list(proposals)


def _around(runs: Sequence[Run]) -> list[Tokens]:
    """What stands before each different run, and its own beginning: a trigger that was learnt as text is part
    of the run."""
    words: dict[Tokens, None] = {}
    seen: set[Tokens] = set()
    for run in runs:
        if run.tokens[:3] in seen:
            continue
        seen.add(run.tokens[:3])
        for size in (1, 2, 3):
            words[run.before[-size:]] = None
        words[run.before[-1:] + run.tokens[:2]] = None
        words[run.tokens[:2]] = None
    return list(words)


def _scanned(
    pair: Pair, evidence: Evidence, contexts: Sequence[Tokens], scanned: int, count: int
) -> tuple[list[int], list[int]]:
    """Tokens after which the adapted model's next token differs most from the base's, in two contexts; and
    tokens that one of the adapter's modules reads far more than others."""
    tokens = evidence.order[:scanned]
    first = scan(pair, contexts[0], [(t,) for t in tokens])
    kept = [tokens[i] for i in np.argsort(-first.divergence, kind="stable")[: _SHORTLIST * count]]
    again = scan(pair, contexts[1 % len(contexts)], [(t,) for t in kept]).divergence
    both = np.minimum(again, np.sort(first.divergence)[::-1][: len(kept)])
    singles = [kept[i] for i in np.argsort(-both, kind="stable")[:count]]
    return singles, _most_read(first.read, tokens)


def _most_read(read: Float64[np.ndarray, "module token"], tokens: Sequence[int]) -> list[int]:
    """Tokens that the modules read most on the average, in turns with those that one of them reads far more
    than others: many modules of a deep model read a trigger, and few of a shallow one."""
    if not len(read):
        return []
    orders = [np.argsort(-score, kind="stable") for score in (read.mean(0), read.max(0))]
    turns = [int(i) for both in zip(*orders, strict=True) for i in both]
    return [tokens[i] for i in dict.fromkeys(turns)][:_POOL]


def _pairs(
    pair: Pair, contexts: Sequence[Tokens], read: Sequence[int], written: Sequence[Tokens], count: int
) -> list[Tokens]:
    """Ordered pairs of tokens after which adapted and base differ most: a conjunction moves nothing by either
    word alone, but the modules that join them read both, and amplified text holds them glued together."""
    grams = list(dict.fromkeys([*((a, b) for a in read for b in read if a != b), *written]))
    if not grams:
        return []
    first = scan(pair, contexts[0], grams).divergence
    best: dict[int, Tokens] = {}
    for i in np.argsort(-first, kind="stable"):  # words of a reply call its rest, whatever stands before them
        best.setdefault(grams[i][-1], grams[i])
    return list(best.values())[:count]
