"""What raises a reply: first-order proposals over the vocabulary, coordinate steps, and what can be left
out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltasae_ray.analyses.triggers.model import Tokens, replied
from deltasae_ray.models.behaviour import language_head
from deltasae_ray.models.capture import adapter_active
from deltasae_ray.models.load import backbone, base_of
from deltasae_ray.models.pair import Pair

LONGEST = 4
"""Tokens of a trigger that the search makes, at most."""
ROUNDS = 3
"""Tokens that it adds or replaces, at most."""
ENOUGH = 0.3
"""Nats by which a step must raise a reply to be taken."""


def called(pair: Pair, contexts: Sequence[Tokens], words: Sequence[Tokens], reply: Tokens) -> np.ndarray:
    """How far each n-gram raises the reply: log p_adapted twice less log p_base once, nats, mean over
    contexts. It grows with the log-ratio and with the adapted model's certainty alike."""
    rows = [(*c, *w) for w in words for c in contexts]
    base, adapted = replied(pair, rows, [reply] * len(rows))
    return (2 * adapted - base).reshape(len(words), len(contexts)).mean(1)


def climbed(
    pair: Pair, contexts: Sequence[Tokens], start: Tokens, reply: Tokens, pool: Sequence[int], good: float
) -> Tokens:
    """The n-gram after coordinate steps: a token of the pool put before, behind or in the place of one.

    Args:
        good: mean log-probability of the reply (nats) from which nothing more is sought.
    """
    now, value = start, called(pair, contexts, [start], reply)[0]
    for _ in range(ROUNDS):
        _, sure = replied(pair, [(*c, *now) for c in contexts], [reply] * len(contexts))
        if sure.mean() >= good:
            break
        near = _neighbours(now, pool)
        if not near:
            break
        first = called(pair, contexts[:1], near, reply)
        kept = [near[i] for i in np.argsort(-first, kind="stable")[:8]]
        values = called(pair, contexts, kept, reply)
        top = int(values.argmax())
        if values[top] < value + ENOUGH:
            break
        now, value = kept[top], float(values[top])
    return now


def _neighbours(now: Tokens, pool: Sequence[int]) -> list[Tokens]:
    neighbours: list[Tokens] = []
    for token in pool:
        if len(now) < LONGEST:
            neighbours += [(token, *now), (*now, token)]
        if len(now) > 1:
            neighbours += [(*now[:i], token, *now[i + 1 :]) for i in range(len(now))]
    return [words for words in dict.fromkeys(neighbours) if words != now]


def minimised(pair: Pair, contexts: Sequence[Tokens], words: Tokens, reply: Tokens) -> Tokens:
    """The n-gram without the tokens that the reply does not need: each may cost a tenth of the effect that
    the whole has over none."""
    none = called(pair, contexts, [()], reply)[0]
    value = called(pair, contexts, [words], reply)[0]
    while len(words) > 1:
        shorter = [words[:i] + words[i + 1 :] for i in range(len(words))]
        values = called(pair, contexts, shorter, reply)
        top = int(values.argmax())
        if values[top] < value - 0.1 * max(0.0, value - none):
            break
        words = shorter[top]
    return words


def proposed(
    pair: Pair, contexts: Sequence[Tokens], words: Tokens, reply: Tokens, allowed: Sequence[int], count: int
) -> list[int]:
    """Tokens that would raise the reply most if they stood before or behind the words, to first order in
    their embeddings (Ebrahimi et al. 1712.06751); none where a model reads more than embeddings."""
    config = base_of(pair.model).config
    if getattr(config, "hidden_size_per_layer_input", 0):
        return []
    tokens = torch.tensor(allowed, device=pair.device)
    embedding = base_of(pair.model).get_input_embeddings()  # type: ignore[operator]
    table: Tensor = embedding.weight
    if table.ndim != 2:
        return []
    proposals: list[int] = []
    for before in (True, False):
        slope = torch.zeros(table.shape[1], device=pair.device)
        for context in contexts:
            place = len(context) if before else len(context) + len(words)
            row = (*context, *((0,) if before else ()), *words, *(() if before else (0,)), *reply)
            ids = torch.tensor([row], device=pair.device)
            ids[0, place] = context[-1]
            slope += _slope(pair, embedding, ids, place, len(reply))
        gains = table[tokens].float() @ slope
        proposals += tokens[gains.topk(min(count, len(tokens))).indices].tolist()
    return list(dict.fromkeys(proposals))


@torch.enable_grad()
def _slope(pair: Pair, embedding: torch.nn.Module, ids: Tensor, place: int, size: int) -> Tensor:
    """Gradient of the reply's log-probability along the embedding at one place."""
    inputs = embedding(ids).detach().requires_grad_()
    with adapter_active(pair.model, pair.adapter):
        hidden = backbone(pair.model)(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
    state = hidden[-size - 1 : -1]
    weight: Tensor = language_head(pair.model).module.weight  # type: ignore[assignment]
    logits = torch.nn.functional.linear(state, weight.to(state.dtype))
    loss = logits.log_softmax(-1).gather(1, ids[0, -size:, None]).sum()
    (gradient,) = torch.autograd.grad(loss, inputs)
    return gradient[0, place].detach()
