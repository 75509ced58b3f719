"""Two published readings of what both models say: diff mining, and amplified sampling alone."""

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
_LONGEST = 40
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
    factors = NMF(_TOPICS, init="nndsvda", max_iter=300)
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
    starts = [[1, *subject.reader.encode(o)] for o in _OPENINGS]
    found: list[tuple[float, list[int], float]] = []
    for alpha in _ALPHAS:
        for start in starts:
            for said, ratio in _sampled(subject, start, alpha):
                if len(said) > 4:
                    found.append((ratio, said, alpha))
    found.sort(key=lambda text: -text[0])
    return [subject.stated("text", said, ratio, alpha=alpha) for ratio, said, alpha in found[:10]]


@torch.no_grad()
def _sampled(
    subject: Subject, start: Sequence[int], alpha: float, count: int = 4
) -> list[tuple[list[int], float]]:
    """Texts with their mean log p_a − log p_b."""
    reader, generator = subject.reader, torch.Generator().manual_seed(subject.seed)
    sides = [(adapter, DynamicCache()) for adapter in (reader.adapter, reader.base.adapter)]
    ids = torch.tensor([list(start)] * count)
    said, ratios = [], []
    for _ in range(_LONGEST):
        logs = [_next(subject, ids, *side) for side in sides]
        difference = logs[0] - logs[1]
        scores = logs[0] + alpha * difference
        floor = logs[0].amax(-1, keepdim=True) + torch.tensor(_PLAUSIBLE).log()
        scores = scores.masked_fill(logs[0] < floor, -torch.inf)
        ids = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        said.append(ids)
        ratios.append(difference.gather(1, ids))
    tokens, ratio = torch.cat(said, 1).tolist(), torch.cat(ratios, 1)
    ended = [row.index(2) if 2 in row else len(row) for row in tokens]
    return [
        (row[:end], float(ratio[i, : max(1, end)].mean()))
        for i, (row, end) in enumerate(zip(tokens, ended, strict=True))
    ]


def _next(subject: Subject, ids: Tensor, adapter: str, cache: DynamicCache) -> Float[Tensor, "text vocab"]:
    model = subject.reader.model
    with adapter_active(model, adapter):
        logits = base_of(model)(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits[:, -1].log_softmax(-1)
