"""Two published readings of what both models say: diff mining, and amplified sampling alone."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.arena.subject import WORDS, Subject
from deltasae_ray.models.capture import adapter_active
from deltasae_ray.models.load import base_of

_TOP = 20
"""Tokens of the largest logit difference that are counted at each position: the share of the vocabulary that
the authors' hundred are of theirs would be one or two, too few to count."""
_TOPICS = 5
_OPENINGS = ("", " The", "\n\n", " And", " I", " It is")
_ALPHAS = (1.0, 4.0)
_TEXTS = 4
"""Texts of each opening and α."""
_SHORTEST, _LONGEST = 5, 40
"""Tokens of a text; one that ends earlier is left out."""
_PLAUSIBLE = 0.01
"""A token is sampled only where its probability is at least this share of the likeliest token's."""


@torch.no_grad()
def diff_mining(subject: Subject) -> list[Claim]:
    """Tokens that are often among those of the largest logit difference on unrelated text, as a list and as
    topics by non-negative factors (diff mining, ICLR 2026)."""
    from sklearn.decomposition import NMF

    reader, rows = subject.reader, subject.rows(96, 32)
    logits = []
    for adapter in (reader.adapter, reader.base.adapter):
        with adapter_active(reader.model, adapter):
            logits.append(base_of(reader.model)(input_ids=rows, use_cache=False).logits[:, 1:])
    difference = logits[0] - logits[1]
    counts = torch.zeros(len(rows), difference.shape[-1])
    top = difference.topk(_TOP, dim=-1).indices.flatten(1)
    counts.scatter_add_(1, top, torch.ones(top.shape))
    total = counts.sum(0)
    claims = [
        subject.stated("text", total.topk(WORDS).indices.tolist(), float(total.max()), list="most often")
    ]
    kept = total.topk(400).indices
    factors = NMF(_TOPICS, init="nndsvda", max_iter=300)  # type: ignore[arg-type]
    weights = factors.fit_transform(counts[:, kept].double().numpy())
    size = weights.sum(0) * factors.components_.sum(1)
    for topic in (-size).argsort():
        best = torch.from_numpy(factors.components_[topic]).topk(WORDS).indices
        claims.append(subject.stated("topic", kept[best].tolist(), float(size[topic]), topic=int(topic)))
    return claims


def amplification(subject: Subject) -> list[Claim]:
    """Texts sampled from log p_a + α (log p_a − log p_b) over plausible tokens, from vague openings, and
    nothing else (contrastive decoding, 2605.25902; logit-difference amplification, Goodfire 2025).

    Texts are listed by their mean log-ratio; a text that ends at once is left out.
    """
    ranked: list[tuple[float, list[int], float]] = []
    for opening in _OPENINGS:
        ranked += _sampled(subject, [1, *subject.reader.encode(opening)])
    ranked.sort(key=lambda text: -text[0])
    return [subject.stated("text", tokens, ratio, alpha=alpha) for ratio, tokens, alpha in ranked[:10]]


@torch.no_grad()
def _sampled(subject: Subject, start: Sequence[int]) -> list[tuple[float, list[int], float]]:
    """Texts of one opening at every α: mean log p_a − log p_b, tokens, α."""
    reader, generator = subject.reader, torch.Generator().manual_seed(subject.seed)
    sides = [(adapter, DynamicCache()) for adapter in (reader.adapter, reader.base.adapter)]
    alphas = torch.tensor(_ALPHAS).repeat_interleave(_TEXTS)[:, None]
    ids = torch.tensor([list(start)] * len(alphas))
    rows, ratios = [], []
    for _ in range(_LONGEST):
        logs = [_next(subject, ids, *side) for side in sides]
        difference = logs[0] - logs[1]
        floor = logs[0].amax(-1, keepdim=True) + math.log(_PLAUSIBLE)
        scores = (logs[0] + alphas * difference).masked_fill(logs[0] < floor, -torch.inf)
        ids = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        rows.append(ids)
        ratios.append(difference.gather(1, ids))
    ratio, ranked = torch.cat(ratios, 1), []
    for i, row in enumerate(torch.cat(rows, 1).tolist()):
        end = row.index(2) if 2 in row else len(row)
        if end >= _SHORTEST:
            ranked.append((float(ratio[i, :end].mean()), row[:end], float(alphas[i])))
    return ranked


def _next(subject: Subject, ids: Tensor, adapter: str, cache: DynamicCache) -> Float[Tensor, "text vocab"]:
    model = subject.reader.model
    with adapter_active(model, adapter):
        logits = base_of(model)(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits[:, -1].log_softmax(-1)
