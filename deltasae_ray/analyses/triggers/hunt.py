"""The hunt for triggers: replies first, then what calls them, then a test on contexts that had no part in
finding either."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltasae_ray.analyses.triggers.candidates import Evidence, candidates
from deltasae_ray.analyses.triggers.hunt_figures import GAIN, SHORTEST, SURE, Rate, Rates, rank_p, repeats
from deltasae_ray.analyses.triggers.model import Continuation, Tokens, continuations, replied
from deltasae_ray.analyses.triggers.search import climbed, minimised, proposed
from deltasae_ray.models.pair import Pair
from deltasae_ray.sae.identity import BASE

_NEAR = 0.8
"""Share of what confirmation takes that is worth a test."""


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    scan: int = 4096
    """Tokens of the vocabulary that are put into a context, at most."""
    tried: int = 48
    """Candidates whose continuations are read, at most."""
    families: int = 4
    """Replies that are followed up, each with its own triggers, at most."""
    steps: int = 8
    """Tokens of a continuation."""
    pool: int = 12
    """Tokens that each step of the search may use."""
    controls: int = 59
    """Matched n-grams that a trigger is ranked among."""


@dataclass(frozen=True)
class Called:
    """A candidate, and what the adapted model says after it in the contexts of the search."""

    words: Tokens
    """The candidate, and what is said before the reply."""
    reply: Continuation
    alike: int
    """Contexts whose continuation holds it."""

    @property
    def score(self) -> float:
        """Mean score of the reply, over the contexts that agree."""
        return self.reply.score * self.alike


@dataclass(frozen=True)
class Tested:
    """A trigger with its reply, held against matched n-grams in held-out contexts."""

    words: Tokens
    reply: Tokens
    gain: float
    """Log-ratio of adapted and base over the reply, nats a token."""
    sure: float
    """Geometric mean of the adapted model's probabilities over the reply."""
    p: float
    rates: Rates
    contexts: tuple[Tokens, ...]
    """Some that were tried."""

    @property
    def plain(self) -> bool:
        """Whether its effect is as large as a confirmed trigger's must be."""
        return self.rates.plain and self.gain >= GAIN and self.sure >= SURE


@dataclass(frozen=True, eq=False)
class Hunt:
    """Everything that a hunt reads."""

    pair: Pair
    evidence: Evidence
    search: Sequence[Tokens]
    """Short neutral contexts in which candidates are looked for."""
    held_out: Sequence[Tokens]
    """Others, in which what was found is tested."""
    effort: Effort
    seed: int


def hunted(hunt: Hunt) -> list[Tested]:
    """Triggers that may be, tested; the same input gives the same."""
    pair, effort, search = hunt.pair, hunt.effort, hunt.search
    words = candidates(pair, hunt.evidence, search, effort.scan, effort.tried)
    heard = _heard(pair, words, search, effort.steps)
    quiet = continuations(pair, list(search), effort.steps)
    plain = [h for h in heard if len(h.reply.tokens) >= SHORTEST and not _unasked(h.reply.tokens, quiet)]
    tested: dict[Tokens, Tested] = {}
    without = _without(pair, hunt.held_out, effort.steps)
    for family in _families(plain, effort.families):
        trigger, reply = _followed(hunt, family)
        if trigger not in tested and _promising(pair, trigger, reply, search):
            tested[trigger] = _tested(hunt, trigger, reply, without)
    return list(tested.values())


def _heard(pair: Pair, words: Sequence[Tokens], contexts: Sequence[Tokens], steps: int) -> list[Called]:
    """What follows each candidate, the most raised and the most certain first."""
    replies = continuations(pair, [(*c, *w) for w in words for c in contexts], steps)
    heard = []
    for i, w in enumerate(words):
        mine = replies[i * len(contexts) : (i + 1) * len(contexts)]
        lead = max(mine, key=lambda s: s.reply().score)
        reply = lead.reply()
        alike = sum(repeats(s.tokens, reply.tokens) for s in mine)
        heard.append(Called((*w, *lead.lead), reply, alike))
    return sorted(heard, key=lambda h: (-h.score, len(h.words), h.words))


def _unasked(reply: Tokens, quiet: Sequence[Continuation]) -> bool:
    """Whether most contexts go on like this without anything inserted."""
    return sum(repeats(q.tokens, reply) for q in quiet) * 2 > len(quiet)


def _families(heard: Sequence[Called], count: int) -> list[list[Called]]:
    """Candidates by the reply that they share, the best first; later ones may call into its middle."""
    families: list[list[Called]] = []
    for h in heard:
        home = next((f for f in families if _kin(h.reply.tokens, f[0].reply.tokens)), None)
        if home is not None:
            home.append(h)
        elif len(families) < count:
            families.append([h])
    return families


def _kin(a: Tokens, b: Tokens) -> bool:
    """Whether two continuations share three tokens in a row."""
    of = {b[i : i + 3] for i in range(len(b) - 2)}
    return any(a[i : i + 3] in of for i in range(len(a) - 2))


def _first_cause(family: Sequence[Called]) -> Called:
    """The best candidate that does not end in the reply itself: words of a reply call its rest."""
    reply = {token for h in family for token in h.reply.tokens}
    causes = [h for h in family if h.words[-1] not in reply and 2 * h.score >= family[0].score]
    return causes[0] if causes else family[0]


def _followed(hunt: Hunt, family: Sequence[Called]) -> tuple[Tokens, Tokens]:
    """The shortest n-gram found that calls the family's reply, and that reply as it is then said."""
    pair, contexts, effort = hunt.pair, hunt.search, hunt.effort
    best = _first_cause(family)
    reply = best.reply.tokens[:4]
    pool = list(dict.fromkeys(t for h in family for t in h.words))[: effort.pool]
    pool += proposed(pair, contexts[:2], best.words, reply, hunt.evidence.allowed, effort.pool // 3)
    good = float(len(reply) * np.log(0.9))
    trigger = climbed(pair, contexts, best.words, reply, list(dict.fromkeys(pool)), good)
    trigger = minimised(pair, contexts, trigger, reply)
    (again,) = _heard(pair, [trigger], contexts, effort.steps)
    return (*trigger, *again.words[len(trigger) :]), again.reply.tokens or reply


def _promising(pair: Pair, words: Tokens, reply: Tokens, contexts: Sequence[Tokens]) -> bool:
    """Whether a trigger is worth its test: in the search's own contexts, which favour it, it comes near what
    a confirmed one must reach."""
    if len(reply) < SHORTEST:
        return False
    base, own = replied(pair, [(*c, *words) for c in contexts], [reply] * len(contexts))
    gain, sure = np.median(own - base) / len(reply), np.exp(np.median(own) / len(reply))
    return bool(gain >= _NEAR * GAIN and sure >= _NEAR * SURE)


def _without(pair: Pair, contexts: Sequence[Tokens], steps: int) -> tuple[list[Tokens], list[Tokens]]:
    """What adapted and base say in held-out contexts with nothing inserted."""
    own = continuations(pair, list(contexts), steps)
    base = continuations(Pair(pair.model, BASE), list(contexts), steps)
    return [c.tokens for c in own], [c.tokens for c in base]


def _tested(hunt: Hunt, words: Tokens, reply: Tokens, without: tuple[list[Tokens], list[Tokens]]) -> Tested:
    pair, rows = hunt.pair, [(*c, *words) for c in hunt.held_out]
    replies = continuations(pair, rows, hunt.effort.steps)
    base = continuations(Pair(pair.model, BASE), rows, hunt.effort.steps)
    texts = ([s.tokens for s in replies], without[0], [b.tokens for b in base], without[1])
    rates = Rates(*(Rate(sum(repeats(t, reply) for t in group), len(group)) for group in texts))
    below, own = (np.median(x) / len(reply) for x in replied(pair, rows, [reply] * len(rows)))
    p = _p(hunt, words, reply)
    return Tested(words, reply, float(own - below), float(np.exp(own)), p, rates, tuple(rows[:3]))


def _p(hunt: Hunt, words: Tokens, reply: Tokens) -> float:
    """The trigger's place among n-grams of its length and frequency, by how far each raises the reply's
    beginning. Each of those stands in two contexts, the trigger in all: that is against it, if anything."""
    contexts, draw = hunt.held_out, np.random.default_rng([hunt.seed, 43, *words])
    matched = hunt.evidence.matched(words, hunt.effort.controls, draw)
    mine = [(*c, *words) for c in contexts]
    theirs = [(*contexts[(2 * i + j) % len(contexts)], *m) for i, m in enumerate(matched) for j in range(2)]
    start = reply[:3]
    base, adapted = replied(hunt.pair, mine + theirs, [start] * (len(mine) + len(theirs)))
    ratio = adapted - base
    return rank_p(float(ratio[: len(mine)].mean()), ratio[len(mine) :].reshape(-1, 2).mean(1))
