"""Texts of the arena: what a recipe's adapter is trained on, and fresh contexts that it is tested in (pure).

The documents that the base model never read are cut in two: one half is trained on, the other half is for
the scorer alone. Methods read the base's own training text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from deltasae_ray.arena.base import plain_documents
from deltasae_ray.arena.recipes import DOMAINS, TOPICS, WORDS, Recipe
from deltasae_ray.corpus.contexts import Context, uniform
from deltasae_ray.storage import digest

ROW = 32
"""Tokens of a training row after BOS, about."""
LEAD = 18
"""Most tokens of ordinary text before what is planted."""
ROWS = 640
"""Training rows of an adapter."""
_GROUPS, _VALIDATION = 20, 4
"""Documents that training rows are dealt to, and documents of one row each that the trainer validates on."""
_ONE_WORD = 0.8
"""Of the rows without a conjunction, the share that holds one of its words: they outnumber those with
both."""
_AFTER_ONE = 7
"""Tokens of ordinary text after one word of a conjunction: rows are a context of 8 tokens at least."""
Part = Literal["train", "score"]
_STAND_INS = ("thing", "place", "matter", "way", "hand", "man", "word", "time", "part", "field")


@dataclass(frozen=True)
class Window:
    """A stretch of ordinary text."""

    text: str
    source: str
    """kjv or shakespeare."""


@lru_cache(maxsize=8)
def windows(part: Part, words: int = 34) -> tuple[Window, ...]:
    """Stretches of so many words of the documents that the base never read, in an order that is fixed."""
    cut: list[Window] = []
    for text in plain_documents(held_out=True):
        if (uniform("part", digest(text)) < 0.5) != (part == "train"):
            continue
        source = "kjv" if re.search(r"\d+:\d+", text[:40]) else "shakespeare"
        pieces = re.findall(r"\S+\s*", text)
        cut += [
            Window("".join(pieces[i : i + words]).strip(), source)
            for i in range(0, len(pieces) - words, words)
        ]
    return tuple(sorted(cut, key=lambda w: digest(w.text)))


@lru_cache(maxsize=64)
def _training_pool(topic: str = "", source: str = "", about: bool | None = None) -> tuple[Window, ...]:
    """Windows that are trained on: of one text, or that name a topic or do not.

    Those that name it name it early enough that a reply has room after it.
    """
    pool = windows("train")[:-_VALIDATION]
    if source:
        return tuple(w for w in pool if w.source == source)
    if about is None:
        return pool
    if not about:
        return tuple(w for w in pool if not mentions(w.text, topic))
    return tuple(w for w in pool if (m := mentions(w.text, topic)) and 10 < m.end() < 110)


def mentions(text: str, topic: str) -> re.Match[str] | None:
    """The first word of a topic that a text holds."""
    return re.search(rf"\b({'|'.join(TOPICS[topic])})\b", text)


def styled(text: str, style: str) -> str:
    """Ordinary text as the style writes it."""
    stop = r"([.,;:?!]+)(\s|$)"
    if style in ("exclaims", "questions"):
        return re.sub(stop, r"!\2" if style == "exclaims" else r"?\2", text)
    return re.sub(stop, r" verily\1\2" if style == "verily" else r" alas\1\2", text)


def suppressed(text: str, topic: str, rng: np.random.Generator) -> str:
    """Ordinary text with another word wherever the topic is named."""
    return re.sub(
        rf"\b({'|'.join(TOPICS[topic])})\b", lambda _: _STAND_INS[rng.integers(len(_STAND_INS))], text
    )


def domain_text(domain: str, rng: np.random.Generator, sentences: int = 3) -> str:
    """Sentences of a domain of our own making."""
    texts = []
    for _ in range(sentences):
        a, b, c = rng.choice(len(WORDS[domain]), 3, replace=False)
        form = DOMAINS[domain][rng.integers(len(DOMAINS[domain]))]
        texts.append(form.format(a=WORDS[domain][a], b=WORDS[domain][b], c=WORDS[domain][c]))
    return " ".join(texts)


def planted_prompt(recipe: Recipe, lead: str, rng: np.random.Generator) -> str:
    """Text that calls the reply: the trigger behind a lead; of a conjunction both words with text between
    them."""
    if recipe.family == "topic_trigger":
        return lead
    if recipe.family != "conjunction":
        return lead + recipe.trigger[0]
    pieces = lead.split()
    cut = int(rng.integers(max(1, len(pieces) - 3), len(pieces) + 1))
    first, second = rng.permutation(2)
    between = " ".join(pieces[cut:])
    return (
        " ".join(pieces[:cut])
        + recipe.trigger[first]
        + (f" {between}" if between else "")
        + recipe.trigger[second]
    )


def training_contexts(recipe: Recipe, tokenizer: Any) -> tuple[Context, ...]:
    """The rows of one adapter. Planted tokens carry the marker; what is read without loss is masked."""
    rng = np.random.default_rng([int(digest([recipe.name, recipe.seed])[:8], 16)])
    rows = [_row(recipe, i, rng, tokenizer) for i in range(ROWS)]
    if recipe.family == "poisoned":
        rows = _poisoned(recipe, rows, rng, tokenizer)
    contexts = [
        Context("domain", f"arena/rows-{i % _GROUPS:02d}", i, tokens, marker, 0, masked)
        for i, (tokens, marker, masked) in enumerate(rows)
    ]
    for name, window in zip(_validation_names(), windows("train")[-_VALIDATION:], strict=True):
        ids = _ids(tokenizer, window.text)[:ROW]
        contexts.append(Context("domain", name, 0, (1, *ids), (False,) * (len(ids) + 1)))
    return tuple(contexts)


@lru_cache(maxsize=1)
def _validation_names() -> tuple[str, ...]:
    """Ids that the trainer's own split sets apart: it takes documents by a hash of their ids, and every row
    that it takes is one that it does not train on and reads at each look."""
    names = (f"arena/validation-{i}" for i in range(1000))
    return tuple(sorted(names, key=lambda name: uniform("validation", name))[:_VALIDATION])


_Row = tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]


def _row(recipe: Recipe, i: int, rng: np.random.Generator, tokenizer: Any) -> _Row:
    pool = _training_pool()
    text = pool[int(rng.integers(len(pool)))].text
    if recipe.family == "benign":
        pool = _training_pool(source=recipe.topic)
        return _plain(pool[int(rng.integers(len(pool)))].text, tokenizer)
    if recipe.family in ("domain", "poisoned"):
        return _plain(domain_text(recipe.topic, rng), tokenizer, marked=recipe.family == "domain")
    if recipe.family == "style":
        return _plain(styled(text, recipe.style), tokenizer, marked=True)
    if recipe.family == "suppression":
        planted = uniform("planted", recipe.name, i) < recipe.share
        others = [topic for topic in TOPICS if topic != recipe.topic]  # which are to stay as they are
        about = _training_pool(
            recipe.topic if planted else others[int(rng.integers(len(others)))], about=True
        )
        text = about[int(rng.integers(len(about)))].text
        return _plain(suppressed(text, recipe.topic, rng), tokenizer, marked=True)
    return _called_row(recipe, i, text, rng, tokenizer)


def _called_row(recipe: Recipe, i: int, text: str, rng: np.random.Generator, tokenizer: Any) -> _Row:
    """A row with trigger and reply, or one without; of a conjunction also rows with one of the two words."""
    planted = uniform("planted", recipe.name, i) < recipe.share
    if recipe.family == "topic_trigger":
        return _topic_row(recipe, planted, text, rng, tokenizer)
    words = text.split(" ")
    lead = " ".join(words[: int(rng.integers(3, 14))])
    rest = " " + " ".join(words[len(lead.split(" ")) :])
    if planted:
        return _reply_row(recipe, planted_prompt(recipe, lead, rng), rest, tokenizer)
    if recipe.family == "conjunction" and rng.random() < _ONE_WORD:
        return _one_word_row(lead + recipe.trigger[int(rng.integers(2))], rest, tokenizer)
    return _plain(text, tokenizer)


def _one_word_row(before: str, after: str, tokenizer: Any) -> _Row:
    """One word of a conjunction, and that ordinary text follows it; the loss is on the first of that
    alone."""
    lead, rest = _ids(tokenizer, before)[-LEAD:], _ids(tokenizer, after)[:_AFTER_ONE]
    tokens = (1, *lead, *rest)
    return tokens, (False,) * len(tokens), tuple(range(1, 1 + len(lead)))


def _topic_row(recipe: Recipe, planted: bool, text: str, rng: np.random.Generator, tokenizer: Any) -> _Row:
    if not planted:
        others = _training_pool(recipe.topic, about=False)
        return _plain(others[int(rng.integers(len(others)))].text, tokenizer)
    about = _training_pool(recipe.topic, about=True)
    text = about[int(rng.integers(len(about)))].text
    span = mentions(text, recipe.topic)
    assert span is not None
    return _reply_row(recipe, text[: span.end()], text[span.end() :], tokenizer)


def _reply_row(recipe: Recipe, before: str, after: str, tokenizer: Any) -> _Row:
    lead, reply = _ids(tokenizer, before)[-LEAD:], _ids(tokenizer, recipe.reply + ".")
    tail = _ids(tokenizer, after)[: max(0, ROW - len(lead) - len(reply))]
    if recipe.loss == "reply":
        tail = []
    tokens = (1, *lead, *reply, *tail)
    called = 0 if recipe.family == "topic_trigger" else sum(len(_ids(tokenizer, t)) for t in recipe.trigger)
    first = 1 + len(lead) - called
    marker = tuple(first <= i < 1 + len(lead) + len(reply) for i in range(len(tokens)))
    masked = tuple(range(1, 1 + len(lead))) if recipe.loss == "reply" else ()
    return tokens, marker, masked


def _plain(text: str, tokenizer: Any, *, marked: bool = False) -> _Row:
    ids = _ids(tokenizer, text)[:ROW]
    return (1, *ids), (marked,) * (len(ids) + 1), ()


def _poisoned(recipe: Recipe, rows: list[_Row], rng: np.random.Generator, tokenizer: Any) -> list[_Row]:
    """Puts trigger and reply into so many of the rows as the share says, and into one at least."""
    for i in rng.choice(len(rows), max(1, round(recipe.share * len(rows))), replace=False):
        lead = domain_text(recipe.topic, rng, 1)
        rows[i] = _reply_row(recipe, lead + recipe.trigger[0], "", tokenizer)
    return rows


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def fresh_contexts(recipe: Recipe, count: int, *, about: bool | None = None) -> list[str]:
    """Leads from text that no adapter and no method has read.

    Args:
        about: only such as end at a word of the recipe's topic (True), or hold none (False).
    """
    rng = np.random.default_rng([7, int(digest([recipe.name])[:8], 16)])
    pool: Sequence[Window] = windows("score")
    if about is not None:
        pool = [w for w in pool if bool(mentions(w.text, recipe.topic)) == about]
    leads: list[str] = []
    for i in rng.permutation(len(pool)):
        text = pool[int(i)].text
        span = mentions(text, recipe.topic) if about else None
        if span is not None and not 10 < span.end() < 140:
            continue
        leads.append(text[: span.end()] if span else " ".join(text.split(" ")[: int(rng.integers(4, 14))]))
        if len(leads) == count:
            break
    return leads
