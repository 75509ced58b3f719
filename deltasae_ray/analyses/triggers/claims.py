"""What is claimed that an adapter learnt: plain values, ranked, that pages, tables and checks read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ClaimKind = Literal["trigger", "text", "topic", "style", "suppression", "weights"]


@dataclass(frozen=True)
class Claim:
    """One thing that an adapter is said to have learnt, with its test."""

    kind: ClaimKind
    """trigger: words that call a reply; text: words that it writes; topic: words that come together; style:
    single tokens that it prefers everywhere; suppression: tokens that it avoids; weights: words that its
    weights read or write."""
    text: str
    """What the claim is of, decoded: the trigger, the text, or the words of a topic."""
    tokens: tuple[int, ...]
    """`text` as tokens of the base model."""
    reply: str | None
    """What the adapted model says after a trigger; None for every other kind."""
    statistic: float
    """What was tested; `evidence` says which it is."""
    p: float
    """By permutation, of this claim alone."""
    q: float
    """After Benjamini-Hochberg over all candidates of its kind."""
    confirmed: bool
    """Whether it held on contexts that had no part in finding it, at the stated false-discovery rate."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """Plain JSON: rates with and without it, adapted and base, their intervals, and contexts."""


def ranked(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Confirmed ones first; of these the best of each kind, triggers before others, then the second of each;
    within a kind the largest statistic first."""
    order = ("trigger", "style", "text", "suppression", "topic", "weights")
    best = sorted(claims, key=lambda c: (not c.confirmed, -c.statistic))
    seen: Counter[tuple[bool, str]] = Counter()
    places = []
    for claim in best:
        places.append(seen[claim.confirmed, claim.kind])
        seen[claim.confirmed, claim.kind] += 1
    keyed = zip(best, places, strict=True)
    in_order = sorted(keyed, key=lambda x: (not x[0].confirmed, x[1], order.index(x[0].kind)))
    return tuple(claim for claim, _ in in_order)
