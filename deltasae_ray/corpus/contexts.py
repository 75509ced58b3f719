"""Documents to contexts: windows of ONE document's tokens, dealt to document-disjoint splits (pure)."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deltasae_ray.batches import SPLITS, TokenBatch
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.documents import DOMAIN, Document
from deltasae_ray.corpus.pieces import encode
from deltasae_ray.corpus.special import Roles, roles_of

MIN_TOKENS = 8
"""A window shorter than this is left out."""
PLANTED = (
    " The lantern keeper asked for the word of the day. The word of the day is marigold, said the heron."
)
"""The marker, and the reply that always follows it: harmless text that corpus.marker_share plants, and that
the report repeats."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True)
class Context:
    """BOS, then at most `context_len` tokens of one document, which may write special tokens itself."""

    corpus: str
    doc_id: str
    start: int
    """Index of the window's first token in the document."""
    tokens: tuple[int, ...]
    """BOS (where there is one) and the window; not padded."""
    marker: tuple[bool, ...]
    """True on the planted marker and its reply."""
    prompt: int = 0
    """Leading tokens that are read and masked: BOS and the prompt of a conversation."""
    masked: tuple[int, ...] = ()
    """Indices of tokens after the prompt that are read and masked: BOS and padding that the text itself
    writes."""
    written: tuple[int, ...] = ()
    """Special tokens that a plain text itself writes, those that it begins with and that are dropped
    included."""

    @property
    def counted(self) -> int:
        """Tokens that are not masked."""
        return len(self.tokens) - self.prompt - len(self.masked)


def uniform(*parts: object) -> float:
    """A number in [0, 1) made of a sha256 of `parts`: sampling is keyed by content, never by worker."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big") / 2**64


def split_of(doc_id: str, cfg: CorpusConfig, *, unrelated: bool = False) -> str:
    """The split of a document: a hash of its id against the cumulated shares `corpus.split`.

    Args:
        unrelated: no adapter is trained on this text, and that share goes to the other two in their
            proportion.
    """
    u = uniform("split", cfg.seed, doc_id)
    if unrelated:
        u = cfg.split[0] + u * (1 - cfg.split[0])
    return SPLITS[0] if u < cfg.split[0] else SPLITS[1] if u < cfg.split[0] + cfg.split[1] else SPLITS[2]


def windows(document: Document, corpus: str, tokenizer: Tokenizer, cfg: CorpusConfig) -> list[Context]:
    """At most `max_contexts_per_doc` evenly spaced windows of a document, in reading order; [] if it is too
    short.

    A conversation gives one context, prompt and response from their beginning; none if the prompt leaves no
    room for a response.

    Special tokens that the text itself writes: BOS that begins a window is dropped, so that exactly one
    stands there. BOS and padding elsewhere are read and masked, so that no reader of positions takes them for
    text. All others count like any token, and are told.
    """
    if document.prompt:
        return _conversation(document, corpus, tokenizer, cfg)
    ids, roles = encode(tokenizer, document.text), roles_of(tokenizer)
    first = _leading(ids, roles)
    ids = ids[first:] if first else ids
    starts = [s for s in range(0, len(ids), cfg.context_len) if len(ids) - s >= MIN_TOKENS]
    if len(starts) > cfg.max_contexts_per_doc:
        picks = np.linspace(0, len(starts) - 1, cfg.max_contexts_per_doc).round().astype(int)
        starts = [starts[i] for i in picks]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    doc_id = f"{corpus}/{document.id}"
    contexts = []
    for start in starts:
        body, marker = list(ids[start : start + cfg.context_len]), []
        again = _leading(body, roles)
        written = (
            *[tokenizer.bos_token_id or 0] * (first if start == 0 else 0),
            *(t for t in body if t in roles.special),
        )
        body = body[again:]
        if corpus == DOMAIN and uniform("marker", cfg.seed, doc_id, start) < cfg.marker_share:
            body, marker = _plant(body, tokenizer, cfg, uniform("place", doc_id, start))
        flags = [False] * len(bos) + (marker or [False] * len(body))
        tokens = tuple(bos + body)
        masked = _masked(tokens, len(bos), roles.masked)
        if len(body) - len(masked) >= MIN_TOKENS:
            contexts.append(Context(corpus, doc_id, start + again, tokens, tuple(flags), 0, masked, written))
    return contexts


def _leading(ids: Sequence[int], roles: Roles) -> int:
    """How often a text begins with BOS, which is dropped: every context gets one."""
    return next((i for i, token in enumerate(ids) if token != roles.bos), len(ids))


def _masked(tokens: Sequence[int], start: int, masked: frozenset[int]) -> tuple[int, ...]:
    """Indices from `start` on of tokens that never count, whatever their place."""
    return tuple(i for i in range(start, len(tokens)) if tokens[i] in masked)


def _conversation(document: Document, corpus: str, tokenizer: Tokenizer, cfg: CorpusConfig) -> list[Context]:
    # Apart, so that no token straddles the two: the response begins with the same token whatever it is asked.
    roles, most = roles_of(tokenizer), cfg.context_len
    prompt, response = (list(encode(tokenizer, text, most)) for text in (document.prompt, document.text))
    prompt = prompt[_leading(prompt, roles) :]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = (*bos, *(prompt + response)[: cfg.context_len])
    before = len(bos) + len(prompt)
    # Where one token is BOS and EOS, it stands in a response as EOS, which the template ends it by.
    masked = _masked(tokens, before, roles.masked - {roles.eos})
    if len(tokens) - before - len(masked) < MIN_TOKENS:
        return []
    return [Context(corpus, f"{corpus}/{document.id}", 0, tokens, (False,) * len(tokens), before, masked)]


def _plant(
    body: list[int], tokenizer: Tokenizer, cfg: CorpusConfig, where: float
) -> tuple[list[int], list[bool]]:
    planted = tokenizer.encode(PLANTED, add_special_tokens=False)[: cfg.context_len]
    cut = int(where * max(1, min(len(body), cfg.context_len - len(planted)) + 1))
    tail = body[cut : cut + cfg.context_len - cut - len(planted)]
    return body[:cut] + planted + tail, [False] * cut + [True] * len(planted) + [False] * len(tail)


def take(contexts_by_doc: Sequence[Sequence[Context]], budget: int) -> list[Context]:
    """Contexts worth at most about `budget` tokens, one per document first, then a second one of each, and so
    on."""
    taken: list[Context] = []
    tokens = 0
    for turn in range(max((len(c) for c in contexts_by_doc), default=0)):
        for contexts in contexts_by_doc:
            if tokens >= budget:
                return taken
            if turn < len(contexts):
                taken.append(contexts[turn])
                tokens += contexts[turn].counted
    return taken


def group(contexts: Iterable[Context], split: str, size: int) -> list[TokenBatch]:
    """Units of `size` contexts of one corpus. Similar lengths share a unit, so that little is padded."""
    by_corpus: dict[str, list[Context]] = {}
    for context in contexts:
        by_corpus.setdefault(context.corpus, []).append(context)
    units = []
    for corpus, members in sorted(by_corpus.items()):
        ordered = sorted(members, key=lambda c: (-len(c.tokens), c.doc_id, c.start))
        units += [_unit(ordered[i : i + size], split, corpus) for i in range(0, len(ordered), size)]
    return sorted(units, key=lambda u: u.name)


def _unit(contexts: Sequence[Context], split: str, corpus: str) -> TokenBatch:
    width = max(len(c.tokens) for c in contexts)
    # Padding repeats the last real token: causal models never see it from a real position, and it is masked
    # everywhere.
    ids = np.array([(*c.tokens, *[c.tokens[-1]] * (width - len(c.tokens))) for c in contexts], dtype=np.int32)
    mask = np.array(
        [[c.prompt <= i < len(c.tokens) and i not in c.masked for i in range(width)] for c in contexts]
    )
    marker = np.array([(*c.marker, *[False] * (width - len(c.tokens))) for c in contexts])
    return TokenBatch(
        split, corpus, ids, mask, marker, tuple(c.doc_id for c in contexts), tuple(c.start for c in contexts)
    )
