"""From a model with an adapter to what is claimed that it learnt: elicited text is mined, and triggers are
hunted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from deltasae_ray.analyses.triggers.candidates import Evidence
from deltasae_ray.analyses.triggers.claims import Claim, ClaimKind, ranked
from deltasae_ray.analyses.triggers.hunt import Effort, Hunt, Tested, hunted
from deltasae_ray.analyses.triggers.hunt_figures import FDR
from deltasae_ray.analyses.triggers.mining_figures import (
    Raised,
    benjamini_hochberg,
    longest_only,
    new_pairs,
    raised,
    topics,
)
from deltasae_ray.analyses.triggers.model import Tokens, runs
from deltasae_ray.elicit.openings import ends, insertable, openings
from deltasae_ray.elicit.sampling import Sampling, Texts, sampled
from deltasae_ray.models.load import base_of
from deltasae_ray.models.pair import Pair
from deltasae_ray.sae.identity import BASE

_LENGTHS = (4, 6, 9)
"""Tokens of the contexts that words are put behind: several positions, few lengths, so that they share a
batch."""
_SEARCH = 3
"""Contexts of the search; all others are held out."""
_HELD_OUT = 24
FEWEST_CONTEXTS = _SEARCH + 8
"""Neutral contexts without which nothing is tested."""
_TEXTS, _TOPICS = 6, 3
"""Claims of texts and of topics that are listed, at most."""
_LISTED = 8
"""Words that one claim of style or suppression tells, at most."""
_TIMES = 3.0
"""A word that an adapter is said to prefer, or avoid, is this many times as frequent, or as rare."""
_CHARACTERS = 400
"""Of a text that a model wrote, at most."""


@dataclass(frozen=True)
class Elicited:
    """Texts of one adapter, and those that they are held against."""

    own: Texts
    """Of the adapted model, at every α."""
    base: Texts
    """Of the base, as many at each opening and α."""
    random: Texts | None = None
    """Of a random adapter, at the same α; None where there is none."""

    def written(self) -> list[Tokens]:
        """What the adapted model wrote."""
        return [self.own.written(i) for i in range(len(self.own))]

    def null(self) -> list[Tokens]:
        """What base and random adapter wrote."""
        texts = [self.base] if self.random is None else [self.base, self.random]
        return [t.written(i) for t in texts for i in range(len(t))]


@dataclass(frozen=True, eq=False)
class Target:
    """An adapter of which claims are sought."""

    model: nn.Module
    """The base with the adapter attached by PEFT, whole (not sharded)."""
    adapter: str
    """Name of the adapter in the model."""
    tokenizer: Any
    neutral: Sequence[Tokens]
    """Texts without BOS that have nothing to do with the adapter, a document each; 30 or more."""
    effort: Effort = Effort()
    seed: int = 0


def elicited(target: Target, how: Sampling) -> Elicited:
    """Samples texts of the adapter, and of the base that they are held against."""
    starts, end = openings(target.tokenizer, target.neutral), ends(target.tokenizer)
    own = sampled(Pair(target.model, target.adapter), starts, how, end)
    plain = replace(how, alphas=(0.0,), samples=how.samples * len(how.alphas))
    return Elicited(own, sampled(Pair(target.model, BASE), starts, plain, end))


def claims_of(target: Target, how: Sampling | None = None) -> tuple[Claim, ...]:
    """What an adapter is claimed to have learnt, best first; the same input gives the same."""
    return claims_of_texts(target, elicited(target, how or Sampling(seed=target.seed)))


def claims_of_texts(target: Target, texts: Elicited) -> tuple[Claim, ...]:
    """Claims from texts that were elicited before."""
    model, tokenizer, neutral, seed = target.model, target.tokenizer, target.neutral, target.seed
    written, null = texts.written(), texts.null()
    pair = Pair(model, target.adapter)
    more, less = raised(written, null), raised(null, written)
    kept = _kept(texts)
    search, held_out = contexts_of(tokenizer, neutral, seed)
    size = base_of(model).get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    evidence = Evidence(
        runs(pair, texts.own),
        longest_only(more[:200]),
        new_pairs(written, null),
        [*written, *neutral],
        insertable(tokenizer, size),
    )
    tested = hunted(Hunt(pair, evidence, search, held_out, target.effort, seed))
    claims = _triggers(tested, tokenizer) + _mined(more, less, kept, written, tokenizer, seed)
    return ranked(claims)


def contexts_of(tokenizer: Any, neutral: Sequence[Tokens], seed: int) -> tuple[list[Tokens], list[Tokens]]:
    """Beginnings of neutral texts, for the search and, of other texts, for the test."""
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    order = np.random.default_rng([seed, 47]).permutation(len(neutral))
    contexts = [(*bos, *neutral[at][: _LENGTHS[i % len(_LENGTHS)]]) for i, at in enumerate(order)]
    contexts = list(dict.fromkeys(contexts))
    return contexts[:_SEARCH], contexts[_SEARCH : _SEARCH + _HELD_OUT]


def _triggers(tested: Sequence[Tested], tokenizer: Any) -> list[Claim]:
    q = benjamini_hochberg(np.array([t.p for t in tested])) if tested else np.empty(0)
    claims = []
    for t, rate in zip(tested, q, strict=True):
        evidence = {
            "statistic": "log-ratio of the reply, nats a token, times its probability",
            "sure": t.sure,
            "rates": t.rates.rows(),
            "reply_tokens": list(t.reply),
            "contexts": [shown(tokenizer, c) for c in t.contexts],
        }
        claims.append(
            Claim("trigger", shown(tokenizer, t.words), t.words, shown(tokenizer, t.reply), t.gain * t.sure,
                t.p, float(rate), bool(rate <= FDR and t.plain), evidence)
        )  # fmt: skip
    return claims


def _kept(texts: Elicited) -> tuple[dict[Tokens, Raised], dict[Tokens, Raised]]:
    """n-grams that unamplified text of the adapter holds more, or less, often than the base's. Amplified text
    of any adapter differs from the base's; only what it says by itself is behaviour."""
    plain = texts.own.of(texts.own.alpha == 0)
    own = [plain.written(i) for i in range(len(plain))]
    base = [texts.base.written(i) for i in range(len(texts.base))]
    kept = []
    for one, other in ((own, base), (base, own)):
        words = raised(one, other)
        kept.append({r.tokens: r for r in words if _often(r, len(one), len(other))})
    return kept[0], kept[1]


def _often(r: Raised, texts: int, beside: int) -> bool:
    """Whether an n-gram is significantly more frequent, and at least three times as frequent."""
    return r.q <= FDR and r.texts * (beside + 1) >= _TIMES * (r.beside + 1) * texts


def _mined(
    more: Sequence[Raised],
    less: Sequence[Raised],
    kept: tuple[dict[Tokens, Raised], dict[Tokens, Raised]],
    written: Sequence[Tokens],
    tokenizer: Any,
    seed: int,
) -> list[Claim]:
    single = [r for r in more if len(r.tokens) == 1]
    whole = longest_only([r for r in more if len(r.tokens) > 1][:200])
    whole.sort(key=lambda r: r.tokens not in kept[0])
    claims = [_of("text", [r], kept[0], tokenizer) for r in whole[:_TEXTS]]
    fewer = [r for r in less if len(r.tokens) == 1]
    counted: tuple[tuple[ClaimKind, list[Raised], dict[Tokens, Raised]], ...] = (
        ("style", single, kept[0]),
        ("suppression", fewer, kept[1]),
    )
    for kind, group, in_texts in counted:
        first = [r for r in group if r.tokens in in_texts] or group
        if first:
            claims.append(_of(kind, first[:_LISTED], in_texts, tokenizer))
    leading = [r for r in single if r.q <= FDR][:200]
    q = {r.tokens[0]: r.q for r in leading}
    for tokens, share in topics(written, list(q), _TOPICS, seed):
        worst = max(q[t] for t in tokens)
        evidence = {"statistic": "share of the weight of all topics"}
        text = " | ".join(shown(tokenizer, (t,)) for t in tokens)
        held = sum((t,) in kept[0] for t in tokens) * 2 >= len(tokens)
        claims.append(Claim("topic", text, tokens, None, share, worst, worst, held, evidence))
    return claims


def _of(kind: ClaimKind, words: Sequence[Raised], in_texts: dict[Tokens, Raised], tokenizer: Any) -> Claim:
    """A claim of an n-gram, or of words that are told together: its statistic is of all texts, p and q are
    the largest of unamplified ones where they were significant there."""
    held = all(r.tokens in in_texts for r in words)
    tested = [in_texts.get(r.tokens, r) for r in words]
    tokens = tuple(t for r in words for t in r.tokens)
    evidence = {
        "statistic": "−log10 p over all texts, of the first",
        "texts": [r.texts for r in words],
        "beside": [r.beside for r in words],
        "tested_on": "unamplified texts" if held else "all texts: it is not said by itself",
    }
    text = " | ".join(shown(tokenizer, r.tokens) for r in words)
    p, q = max(r.p for r in tested), max(r.q for r in tested)
    statistic = -float(np.log10(max(words[0].p, 1e-300)))
    return Claim(kind, text, tokens, None, statistic, p, q, held, evidence)


def shown(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Tokens as text, bounded in length; what prints the text escapes it."""
    return tokenizer.decode(list(tokens))[:_CHARACTERS]
