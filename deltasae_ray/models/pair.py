"""The base and one adapter of a resident model, run on the same tokens: what text is sampled with, and what a
reply is scored with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from deltasae_ray.models.behaviour import LanguageHead, language_head
from deltasae_ray.models.capture import adapter_active
from deltasae_ray.models.load import backbone, base_of
from deltasae_ray.models.together import alone, side_by_side
from deltasae_ray.sae.identity import BASE

Hidden = Float[Tensor, "row position d_model"]
_ROWS = 96
"""Rows that pass the model at once."""


class Pair:
    """Base and adapted model on the same rows: in one pass where the adapter can share it, else in two."""

    def __init__(self, model: nn.Module, adapter: str) -> None:
        """
        Args:
            adapter: attached to the model; "base" compares the base with itself.
        """
        self.model, self.adapter = model, adapter
        self.head: LanguageHead = language_head(model)
        self.device = next(base_of(model).parameters()).device
        self._shares = adapter != BASE and not alone(model, [adapter])

    @contextmanager
    def caches(self) -> Iterator["Cached"]:
        """Inside, tokens are fed step by step; keys and values of earlier ones are kept."""
        yield Cached(self)

    @torch.no_grad()
    def hidden(self, ids: Int[Tensor, "row position"]) -> tuple[Hidden, Hidden]:
        """What the head reads at every position, of the base and of the adapted model."""
        parts = [self.passed(part.to(self.device), (None, None)) for part in ids.split(_ROWS)]
        return torch.cat([b for b, _ in parts]), torch.cat([a for _, a in parts])

    def passed(self, ids: Int[Tensor, "row position"], kept: tuple[Any, Any]) -> tuple[Hidden, Hidden]:
        """One forward pass; `kept` are caches of keys and values, or None."""
        if self._shares:
            with adapter_active(self.model, BASE), side_by_side(self.model, [self.adapter]):
                both = self._run(ids.repeat(2, 1), kept[0])
            return both[: len(ids)], both[len(ids) :]
        with adapter_active(self.model, BASE):
            base = self._run(ids, kept[0])
        if self.adapter == BASE:
            return base, base
        with adapter_active(self.model, self.adapter):
            return base, self._run(ids, kept[1])

    def _run(self, ids: Tensor, cache: Any) -> Hidden:
        body: Any = backbone(self.model)
        return body(input_ids=ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state


class Cached:
    """Feeds a pair one or more tokens at a time."""

    def __init__(self, pair: Pair) -> None:
        from transformers import DynamicCache

        config: Any = base_of(pair.model).config
        self._pair = pair
        self._kept = (DynamicCache(config=config), DynamicCache(config=config))

    @torch.no_grad()
    def feed(self, ids: Int[Tensor, "row position"]) -> tuple[Hidden, Hidden]:
        """The hidden states of these tokens after all that were fed before."""
        return self._pair.passed(ids, self._kept)

    def widen(self, rows: int) -> None:
        """Makes `rows` equal rows of the one that was fed so far."""
        for cache in self._kept:
            if cache.get_seq_length():
                cache.batch_repeat_interleave(rows)


@torch.no_grad()
def plausible(
    head: LanguageHead, hidden: Float[Tensor, "n d_model"], floor: float
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Float[Tensor, " pair"], Float64[Tensor, " n"]]:
    """Tokens with a probability of at least `floor` of the best one's, in one pass over the vocabulary.

    Returns:
        Row, token and logit of each, by row and then by token; and every row's log-sum-exp.
    """
    gap = torch.tensor(floor, dtype=torch.float64).log().item()
    best = hidden.new_full((len(hidden),), -torch.inf)
    lse = torch.full((len(hidden),), -torch.inf, dtype=torch.float64, device=hidden.device)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for start, logits in head.blocks(hidden):
        best = torch.maximum(best, logits.amax(0))
        token, row = (logits >= best + gap).nonzero(as_tuple=True)
        pairs.append((row, token + start, logits[token, row]))
        lse = torch.logaddexp(lse, logits.sub_(best).exp_().sum(0).double().log() + best)
    row, token, logit = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    kept: Bool[Tensor, " pair"] = logit >= best[row] + gap
    row, token, logit = row[kept], token[kept], logit[kept]
    order = (row * (int(token.max()) + 1) + token).argsort()
    return row[order], token[order], logit[order], lse


@torch.no_grad()
def log_probabilities(
    head: LanguageHead, hidden: Float[Tensor, "n d_model"], labels: Int[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Log-probability of a label after each hidden state."""
    lse = torch.full((len(hidden),), -torch.inf, dtype=torch.float64, device=hidden.device)
    label = torch.zeros_like(lse)
    for start, logits in head.blocks(hidden):
        here = ((labels >= start) & (labels < start + len(logits))).nonzero()[:, 0]
        label[here] = logits[labels[here] - start, here].double()
        peak = logits.amax(0)
        lse = torch.logaddexp(lse, logits.sub_(peak).exp_().sum(0).double().log() + peak)
    return label - lse


@torch.no_grad()
def best(
    head: LanguageHead, hidden: Float[Tensor, "n d_model"]
) -> tuple[Int[Tensor, " n"], Float64[Tensor, " n"]]:
    """The likeliest token after each hidden state, the first of equals, and its log-probability."""
    top = hidden.new_full((len(hidden),), -torch.inf)
    token = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    lse = torch.full((len(hidden),), -torch.inf, dtype=torch.float64, device=hidden.device)
    for start, logits in head.blocks(hidden):
        peak, at = logits.max(0)
        token = torch.where(peak > top, at + start, token)
        top = torch.maximum(top, peak)
        lse = torch.logaddexp(lse, logits.sub_(peak).exp_().sum(0).double().log() + peak)
    return token, top.double() - lse


@torch.no_grad()
def divergences(
    head: LanguageHead, base: Float[Tensor, "n d_model"], adapted: Float[Tensor, "n d_model"]
) -> Float64[Tensor, " n"]:
    """KL(adapted ‖ base) of the next token, nats; in fp32, to rank by."""
    lse = torch.full((2, len(base)), -torch.inf, dtype=torch.float64, device=base.device)
    gap = torch.zeros(len(base), dtype=torch.float64, device=base.device)
    rows = torch.cat([base, adapted])
    for _, logits in head.blocks(rows):
        below, own = logits[:, : len(base)], logits[:, len(base) :]
        peak, floor = own.amax(0), below.amax(0)
        difference = own - below
        weight = own.sub_(peak).exp_()
        shift = peak.double()
        whole = torch.logaddexp(lse[1], weight.sum(0).double().log() + shift)
        moved = (weight * difference).sum(0).double() * (shift - whole).exp()
        gap = gap * (lse[1] - whole).exp() + moved
        lse[1] = whole
        lse[0] = torch.logaddexp(lse[0], below.sub_(floor).exp_().sum(0).double().log() + floor)
    return gap - lse[1] + lse[0]
