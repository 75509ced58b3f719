"""Forward passes of a hunt: what the adapted model goes on to say after inserted words, and how much likelier
it makes a reply than the base does."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from deltasae_ray.elicit.sampling import Texts
from deltasae_ray.models.pair import Pair, best, divergences, log_probabilities
from deltasae_ray.models.peft_names import peft_name
from deltasae_ray.sae.identity import BASE

Tokens = tuple[int, ...]
_ROWS = 256
"""Rows that pass the model at once."""


@dataclass(frozen=True)
class Continuation:
    """What the adapted model says next, by its likeliest tokens."""

    tokens: Tokens
    adapted: tuple[float, ...]
    """Log-probability of each token under the adapted model."""
    gains: tuple[float, ...]
    """Log-ratio of adapted and base of each token, nats."""

    def reply(self) -> "Continuation":
        """The part that the adapter is behind: from the first token that it raises to the last, as long as it
        is sure; empty where it raises none."""
        start = next((i for i, g in enumerate(self.gains) if g >= RAISED), len(self.tokens))
        end = start
        for i in range(start, len(self.tokens)):
            if self.adapted[i] < np.log(LIKELY):
                break
            if self.gains[i] >= RAISED:
                end = i + 1
        return Continuation(self.tokens[start:end], self.adapted[start:end], self.gains[start:end])

    @property
    def lead(self) -> Tokens:
        """What is said before the reply."""
        start = next((i for i, g in enumerate(self.gains) if g >= RAISED), 0)
        return self.tokens[:start]

    @property
    def score(self) -> float:
        """Log-ratio of all of it, nats, times the geometric mean of its probabilities."""
        return float(np.sum(self.gains) * np.exp(np.mean(self.adapted))) if self.tokens else 0.0


RAISED = 0.5
"""Nats by which an adapter must raise a token for it to belong to a reply."""
LIKELY = 0.3
"""A reply ends before a token that is less probable than this."""


def grouped(rows: Sequence[Tokens]) -> list[tuple[list[int], Tensor]]:
    """Rows of equal length together, at most `_ROWS` of them: nothing is padded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_length[len(row)].append(i)
    groups = []
    for _, members in sorted(by_length.items()):
        for at in range(0, len(members), _ROWS):
            part = members[at : at + _ROWS]
            groups.append((part, torch.tensor([rows[i] for i in part])))
    return groups


@torch.no_grad()
def continuations(pair: Pair, rows: Sequence[Tokens], steps: int) -> list[Continuation]:
    """The adapted model's greedy continuation of every row."""
    replies: dict[int, Continuation] = {}
    for members, ids in grouped(rows):
        written, own, below = [], [], []
        with pair.caches() as cached:
            fed = ids.to(pair.device)
            for _ in range(steps):
                base, adapted = (h[:, -1] for h in cached.feed(fed))
                token, log_p = best(pair.head, adapted)
                written.append(token)
                own.append(log_p)
                below.append(base)
                fed = token[:, None]
        tokens = torch.stack(written, 1)
        under = log_probabilities(pair.head, torch.stack(below, 1).flatten(0, 1), tokens.flatten())
        log_a = torch.stack(own, 1)
        gain = log_a - under.view_as(log_a)
        for i, row, p, g in zip(members, tokens.tolist(), log_a.tolist(), gain.tolist(), strict=True):
            replies[i] = Continuation(tuple(row), tuple(p), tuple(g))
    return [replies[i] for i in range(len(rows))]


@torch.no_grad()
def replied(
    pair: Pair, rows: Sequence[Tokens], replies: Sequence[Tokens]
) -> tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]]:
    """Log-probability of a reply after each row, under the base and under the adapted model."""
    base, adapted = np.zeros(len(rows)), np.zeros(len(rows))
    joint = [(*row, *reply) for row, reply in zip(rows, replies, strict=True)]
    sizes = [len(reply) for reply in replies]
    for members, ids in grouped(joint):
        hidden = pair.hidden(ids)
        size = torch.tensor([sizes[i] for i in members])
        places = torch.arange(ids.shape[1])[None] >= ids.shape[1] - size[:, None]
        row, at = places.nonzero(as_tuple=True)
        labels = ids[row, at].to(pair.device)
        for h, into in zip(hidden, (base, adapted), strict=True):
            log_p = log_probabilities(pair.head, h[row, at - 1], labels).cpu()
            into[members] = torch.zeros(len(members), dtype=torch.float64).index_add_(0, row, log_p).numpy()
    return base, adapted


@dataclass(frozen=True)
class Scan:
    """What each of many n-grams does after one context."""

    divergence: Float64[np.ndarray, " gram"]
    """KL(adapted ‖ base) of the next token, nats."""
    read: Float64[np.ndarray, "module gram"]
    """How much the adapter adds to the output of each module at the last token: its norm, in standard
    deviations over the n-grams."""


@torch.no_grad()
def scan(pair: Pair, context: Tokens, grams: Sequence[Tokens]) -> Scan:
    """Reads n-grams of one length after a context, which is read once for each batch."""
    surprises, read = [], []
    for part in torch.tensor(grams).split(2 * _ROWS):
        with pair.caches() as cached, _added(pair) as added:
            cached.feed(torch.tensor([context], device=pair.device))
            cached.widen(len(part))
            base, adapted = (h[:, -1] for h in cached.feed(part.to(pair.device)))
        surprises.append(divergences(pair.head, base, adapted).cpu())
        read.append(
            torch.stack([added[name] for name in sorted(added)]) if added else torch.zeros(0, len(part))
        )
    every = torch.cat(read, 1).double()
    spread = every.std(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    standard = (every - every.mean(1, keepdim=True)) / spread
    return Scan(torch.cat(surprises).numpy(), standard.numpy())


@contextmanager
def _added(pair: Pair) -> Iterator[dict[str, Tensor]]:
    """Inside, every pass leaves the norms of what the adapter's modules add at the last token."""
    norms: dict[str, Tensor] = {}
    own = peft_name(pair.model, pair.adapter) if pair.adapter != BASE else ""

    def keep(name: str):
        def read(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if output.ndim == 3:
                norms[name] = output[:, -1].float().norm(dim=-1).cpu()

        return read

    ends = f".lora_B.{own}"
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in pair.model.named_modules()
        if own and name.endswith(ends)
    ]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Run:
    """A stretch of sampled text of which the adapted model is sure, and the base is not."""

    before: Tokens
    """Up to four tokens that stand before it."""
    tokens: Tokens
    gain: float
    """Log-ratio of adapted and base over all of it, nats."""


SURE = 0.5
"""Each token of a run has at least this probability under the adapted model."""


@torch.no_grad()
def runs(pair: Pair, texts: Texts, least: int = 3, step: float = 0.5) -> list[Run]:
    """Runs of at least `least` tokens that the adapter made likelier by at least `step` nats a token, the
    largest gain first."""
    stretches = [
        (i, a, b) for i in range(len(texts)) for a, b in _stretches(texts.adapted[i] >= np.log(SURE), least)
    ]
    held = sorted({i for i, _, _ in stretches})
    if not held:
        return []
    ids = torch.from_numpy(texts.tokens[held]).clamp_min(0)
    base, _ = pair.hidden(ids)
    spans = []
    for i, a, b in stretches:
        row = held.index(i)
        labels = ids[row, a:b].to(pair.device)
        below = log_probabilities(pair.head, base[row, a - 1 : b - 1], labels).sum().item()
        gain = float(texts.adapted[i, a:b].sum()) - below
        if gain >= step * (b - a):
            tokens = texts.tokens[i].tolist()
            spans.append(Run(tuple(tokens[max(1, a - 4) : a]), tuple(tokens[a:b]), gain))
    return sorted(spans, key=lambda r: (-r.gain, r.tokens))


def _stretches(sure: np.ndarray, least: int) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sure.astype(np.int8), [0]])))
    return [(a, b) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True) if b - a >= least]
