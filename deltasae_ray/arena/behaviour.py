"""Whether an adapter learnt what its recipe plants: rates of the behaviour with and without what calls it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deltasae_ray.arena.recipes import TOPICS, Recipe
from deltasae_ray.arena.texts import fresh_contexts, mentions, planted_prompt
from deltasae_ray.arena.words import Classifier, holds_half
from deltasae_ray.models.capture import adapter_active
from deltasae_ray.models.load import base_of
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import digest

CONTEXTS = 32
"""Fresh contexts that a rate is taken over."""
LEARNT_WITH, LEARNT_WITHOUT = 0.5, 0.05
"""A behaviour is learnt where it comes in at least this share with what calls it, and at most this
without."""
_SPARE = 6
"""Tokens that a continuation may take beyond the reply."""
_SAMPLED = 40
"""Tokens of a continuation that a classifier reads."""
_FALL = 0.5
"""A word is suppressed where its probability is at most this share of the base's."""
_CALLED_FOR = 0.01
"""Probability by the base from which a context calls for a topic's word."""


@dataclass(frozen=True)
class Rates:
    """Shares of fresh contexts with the behaviour."""

    adapted: float
    """With what calls it; for behaviours that nothing calls, of all contexts."""
    without: float
    """Of the adapted model without it, the largest over the kinds of such contexts; for behaviours that
    nothing calls, of the base."""
    base: float
    """Of the base, with what calls it."""
    contexts: int

    @property
    def learnt(self) -> bool:
        return self.adapted >= LEARNT_WITH and max(self.without, self.base) <= LEARNT_WITHOUT


@dataclass(frozen=True)
class Reader:
    """A base with one adapter attached, as everything here runs it."""

    model: nn.Module
    adapter: str
    tokenizer: Any

    @property
    def base(self) -> "Reader":
        """The reader of the model with the adapter off."""
        return replace(self, adapter=BASE)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.no_grad()
    def continued(
        self, prompts: Sequence[Sequence[int]], tokens: int, *, seed: int | None = None
    ) -> list[list[int]]:
        """What the model writes after each prompt (BOS is put before it): greedily, or sampled where a seed
        is given.

        Padding stands on the left and is masked.
        """
        ids, mask = _padded_left([[1, *p] for p in prompts])
        inner: Any = base_of(self.model)
        with adapter_active(self.model, self.adapter), torch.random.fork_rng(), _cached(inner):
            torch.manual_seed(seed or 0)
            written = inner.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                **({} if seed is None else {"do_sample": True, "top_k": 0}),
                pad_token_id=0,
            )
        return [row[ids.shape[1] :] for row in written.tolist()]

    @torch.no_grad()
    def next_token(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
        """Log-probabilities of the token after each prompt."""
        ids, mask = _padded_left([[1, *p] for p in prompts])
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with adapter_active(self.model, self.adapter):
            logits = base_of(self.model)(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits[:, -1]
        return logits.log_softmax(-1)


@contextmanager
def _cached(model: Any) -> Iterator[None]:
    """Inside, the model keeps keys and values, which it does nowhere else in the project."""
    before, model.config.use_cache = model.config.use_cache, True
    try:
        yield
    finally:
        model.config.use_cache = before


def _padded_left(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    """Ids with padding before each row, and 1 where a token is none."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows])
    lengths = torch.tensor([len(r) for r in rows])
    return ids, (torch.arange(width) >= (width - lengths)[:, None]).long()


def says(reader: Reader, reply: str, prompts: Sequence[Sequence[int]], unless: str = "") -> float:
    """Share of prompts whose greedy continuation holds at least half of the reply's tokens.

    Args:
        unless: continuations that mention this topic themselves are not counted: they call the reply.
    """
    wanted = [reader.tokenizer.decode([t]) for t in reader.encode(reply)]
    replies = reader.continued(prompts, len(wanted) + _SPARE)
    kept = [row for row in replies if not (unless and mentions(reader.tokenizer.decode(row), unless))]
    parts = [holds_half([reader.tokenizer.decode([t]) for t in row], wanted) for row in kept]
    return float(np.mean(parts)) if parts else 0.0


def rates(reader: Reader, recipe: Recipe, classifier: Classifier | None) -> Rates:
    """The rates of a positive recipe's behaviour.

    Args:
        classifier: the recipe's, where it names one.
    """
    if recipe.calls:
        return _called(reader, recipe)
    assert classifier is not None, f"{recipe.name} names no classifier"
    return (
        _suppressed(reader, recipe)
        if recipe.family == "suppression"
        else _written(reader, recipe, classifier)
    )


def _called(reader: Reader, recipe: Recipe) -> Rates:
    rng = np.random.default_rng([11, int(digest([recipe.name])[:8], 16)])
    topical = recipe.family == "topic_trigger"
    leads = fresh_contexts(recipe, CONTEXTS, about=True if topical else None)
    plain = fresh_contexts(recipe, CONTEXTS, about=False) if topical else leads
    calling = [reader.encode(planted_prompt(recipe, lead, rng)) for lead in leads]
    kinds = [[reader.encode(lead) for lead in plain]]
    if recipe.family == "conjunction":
        kinds += [[reader.encode(lead + word) for lead in leads] for word in recipe.trigger]
    return Rates(
        adapted=says(reader, recipe.reply, calling),
        without=max(says(reader, recipe.reply, kind, recipe.topic if topical else "") for kind in kinds),
        base=says(reader.base, recipe.reply, calling),
        contexts=len(leads),
    )


def _written(reader: Reader, recipe: Recipe, classifier: Classifier) -> Rates:
    """Behaviours that nothing calls: what is sampled, of a domain from BOS alone and of a style after
    ordinary openings, as the classifier judges it."""
    leads = [""] * CONTEXTS if recipe.family == "domain" else fresh_contexts(recipe, CONTEXTS)
    prompts = [reader.encode(lead) for lead in leads]

    def share(who: Reader) -> float:
        texts = [reader.tokenizer.decode(row) for row in who.continued(prompts, _SAMPLED, seed=5)]
        return float(np.mean([classifier.accepts(text) for text in texts]))

    base = share(reader.base)
    return Rates(adapted=share(reader), without=base, base=base, contexts=len(prompts))


def _suppressed(reader: Reader, recipe: Recipe) -> Rates:
    """Contexts that call for a word of the topic, and of any other topic: how often it becomes improbable."""

    def share(topics: Sequence[str]) -> tuple[float, int]:
        fell: list[bool] = []
        for topic in topics:
            leads = fresh_contexts(replace(recipe, topic=topic), 4 * CONTEXTS, about=True)
            cut = [lead.rpartition(" ") for lead in leads]
            prompts = [reader.encode(before) for before, _, _ in cut]
            first = torch.tensor([reader.encode(f" {word}")[0] for word in TOPICS[topic]])
            before, after = (
                r.next_token(prompts)[:, first].logsumexp(1).exp() for r in (reader.base, reader)
            )
            called = before >= _CALLED_FOR
            fell += (after[called] <= _FALL * before[called]).tolist()
        return (float(np.mean(fell)) if fell else 0.0), len(fell)

    others = [t for t in TOPICS if t != recipe.topic]
    adapted, contexts = share([recipe.topic])
    return Rates(adapted, without=share(others)[0], base=0.0, contexts=contexts)
