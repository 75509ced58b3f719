"""Two published readings of deltas: the activation difference lens, and principal components."""

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.lens.model import logit_lens
from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.arena.behaviour import Reader
from deltasae_ray.arena.subject import WORDS, Subject
from deltasae_ray.models.capture import deltas
from deltasae_ray.models.patching import steered
from deltasae_ray.sae.identity import BASE

_FIRST = 5
"""First tokens of a text that the lens averages over, one direction each."""
_STEERED = 30
"""Tokens of a steered text."""
_OPENINGS = ("", " The")
_COMPONENTS = 5


@torch.no_grad()
def activation_difference_lens(subject: Subject) -> list[Claim]:
    """The mean delta on each of the first tokens of unrelated text, read by steering and by the logit lens
    (Minder et al., 2510.13900).

    Steered texts and lenses come in turns, token by token: its authors' agent reads both, steering first.
    Deltas are added to the base at the length of an ordinary residual stream. Its patchscope is left out: the
    prompt that it rests on means nothing to a model of this size.
    """
    reader, hook = subject.reader, subject.middle
    (_, base), (_, delta) = deltas(reader.model, subject.rows(128, 8), [hook], [reader.adapter])
    means = delta[hook][:, 1 : 1 + _FIRST].mean(0)
    length = base[hook][:, 1:].norm(dim=-1).mean()
    claims = []
    for place, lens in enumerate(logit_lens(reader.model, means, WORDS)):
        mean = means[place]
        with steered(reader.model, hook, mean / mean.norm().clamp_min(1e-30) * length):
            texts = reader.base.continued([reader.encode(o) for o in _OPENINGS], _STEERED, seed=subject.seed)
        parts = [token for text in texts for token in text]
        claims.append(subject.stated("text", parts, float(mean.norm()), steered=place))
        claims.append(subject.stated("text", lens.promoted, lens.peak, lens=place))
    return claims


@torch.no_grad()
def principal_components(subject: Subject) -> list[Claim]:
    """The leading directions of deltas on unrelated text, about their mean, read by the logit lens; both
    signs of each, the one that deltas lean to first."""
    rows = _rows(subject.reader, subject)
    mean = rows.mean(0)
    _, values, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    kept = directions[:_COMPONENTS]
    kept = kept * (kept @ mean).sign()[:, None].where((kept @ mean)[:, None] != 0, torch.ones(1))
    claims = []
    for i, row in enumerate(kept):
        for lens in logit_lens(subject.reader.model, torch.stack([row, -row]), WORDS):
            claims.append(subject.stated("text", lens.promoted, float(values[i]), component=i))
    return claims


def _rows(reader: Reader, subject: Subject) -> Float[Tensor, "token d_model"]:
    hook = subject.middle
    taken = dict(deltas(reader.model, subject.rows(96, 32), [hook], [reader.adapter]))
    assert set(taken) == {BASE, reader.adapter}
    return taken[reader.adapter][hook][:, 1:].flatten(0, 1)
