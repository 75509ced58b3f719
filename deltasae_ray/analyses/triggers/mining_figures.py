"""Words that elicited texts hold more often than the texts that they are held against, and the topics that
they form; arrays in, values out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import hypergeom

Tokens = tuple[int, ...]
LONGEST = 4
"""Tokens of an n-gram that is counted, at most."""
FEWEST = 3
"""Texts of either kind that an n-gram must stand in to be a candidate: which is not what
is tested."""


@dataclass(frozen=True)
class Raised:
    """An n-gram, and in how many texts it stands."""

    tokens: Tokens
    texts: int
    """Elicited texts that hold it."""
    beside: int
    """Texts of the null that hold it."""
    p: float
    """Share of permutations of the texts that give as large a count: exact, from the hypergeometric."""
    q: float
    """After Benjamini-Hochberg over all candidates."""


def grams(text: Sequence[int], longest: int = LONGEST) -> set[Tokens]:
    """The different n-grams of a text."""
    return {tuple(text[i : i + n]) for n in range(1, longest + 1) for i in range(len(text) - n + 1)}


def raised(texts: Sequence[Tokens], null: Sequence[Tokens], longest: int = LONGEST) -> list[Raised]:
    """N-grams that stand in more of the texts than of the null's, the smallest p first.

    A text counts once however often it holds an n-gram, since its tokens are not independent; that makes the
    permutation p over texts exact (Fisher's test).
    """
    own = Counter(g for text in texts for g in grams(text, longest))
    other = Counter(g for text in null for g in grams(text, longest))
    frequent = sorted(g for g, count in own.items() if count + other[g] >= FEWEST)
    if not frequent:
        return []
    hits = np.array([own[g] for g in frequent])
    total = hits + np.array([other[g] for g in frequent])
    p = hypergeom.sf(hits - 1, len(texts) + len(null), total, len(texts))
    q = benjamini_hochberg(p)
    words = [
        Raised(g, int(h), other[g], float(a), float(b))
        for g, h, a, b in zip(frequent, hits, p, q, strict=True)
    ]
    return sorted(words, key=lambda r: (r.p, -len(r.tokens), r.tokens))


def new_pairs(texts: Sequence[Tokens], null: Sequence[Tokens]) -> list[Tokens]:
    """Pairs of neighbours that no text of the null has, those of most texts first."""
    own: Counter[Tokens] = Counter(g for text in texts for g in grams(text, 2) if len(g) == 2)
    seen = {g for text in null for g in grams(text, 2)}
    return sorted((g for g in own if g not in seen), key=lambda g: (-own[g], g))


def longest_only(words: Sequence[Raised]) -> list[Raised]:
    """Without n-grams that stand in a longer one found in at least half as many texts."""
    kept: list[Raised] = []
    for r in sorted(words, key=lambda r: -len(r.tokens)):
        if not any(_inside(r.tokens, k.tokens) and 2 * k.texts >= r.texts for k in kept):
            kept.append(r)
    return sorted(kept, key=lambda r: (r.p, -len(r.tokens), r.tokens))


def _inside(part: Tokens, whole: Tokens) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def benjamini_hochberg(p: Float[np.ndarray, " candidate"]) -> Float[np.ndarray, " candidate"]:
    """q of each p: the smallest false-discovery rate at which it is still claimed."""
    order = np.argsort(p, kind="stable")
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(stepped[::-1])[::-1], 1.0)
    return q


def topics(
    texts: Sequence[Tokens], vocabulary: Sequence[int], count: int, seed: int
) -> list[tuple[tuple[int, ...], float]]:
    """Groups of tokens that stand in the same texts, by non-negative matrix factorisation of texts × tokens:
    of each the leading tokens and its share of all weight, the largest first."""
    from sklearn.decomposition import NMF

    at = {token: i for i, token in enumerate(vocabulary)}
    held = np.zeros((len(texts), len(at)))
    for i, text in enumerate(texts):
        held[i, [at[t] for t in set(text) if t in at]] = 1.0
    held = held[held.sum(1) > 1]
    rank = min(count, len(held) - 1, len(at) - 1)
    if rank < 1:
        return []
    model: Any = NMF(rank, init="nndsvda", random_state=seed, max_iter=400)  # type: ignore[arg-type]
    weights = model.fit_transform(held).sum(0)
    parts = np.asarray(model.components_)
    share = weights * parts.sum(1)
    share = share / max(share.sum(), np.finfo(float).tiny)
    groups = []
    for i in np.argsort(-share, kind="stable"):
        lead = [int(vocabulary[j]) for j in np.argsort(-parts[i], kind="stable")[:8] if parts[i, j] > 0]
        if len(lead) > 1:
            groups.append((tuple(lead), float(share[i])))
    return groups
