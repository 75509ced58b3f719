"""Text sampled from log p_adapted + α (log p_adapted − log p_base), over tokens that the adapted model finds
plausible.

Contrastive decoding of a fine-tune against its base (2605.25902), with short neutral openings. All openings
and all α go in one batch; an opening is fed token by token as sampled ones are, so that nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from deltasae_ray.models.pair import Pair, plausible
from deltasae_ray.sae.identity import BASE

FLOOR = 0.02
"""A token is plausible whose probability is at least this share of the best one's."""


@dataclass(frozen=True)
class Texts:
    """Sampled texts, one a row."""

    tokens: Int64[np.ndarray, "text position"]
    """The opening, what was sampled, and −1 after a text's end."""
    opening: Int64[np.ndarray, " text"]
    """Tokens of each text that were given."""
    alpha: Float64[np.ndarray, " text"]
    """How far the difference to the base was amplified."""
    adapted: Float64[np.ndarray, "text position"]
    """Log-probability of each sampled token under the adapted model, before any amplification; NaN for given
    ones."""

    def __len__(self) -> int:
        return len(self.tokens)

    def written(self, text: int) -> tuple[int, ...]:
        """The sampled tokens of one text."""
        row = self.tokens[text, self.opening[text] :]
        return tuple(row[row >= 0].tolist())

    def of(self, rows: Bool[np.ndarray, " text"]) -> "Texts":
        """Some of the texts."""
        return Texts(self.tokens[rows], self.opening[rows], self.alpha[rows], self.adapted[rows])


@dataclass(frozen=True)
class Sampling:
    """How much is sampled, and how."""

    samples: int = 16
    """Texts for each opening and α."""
    length: int = 32
    """Sampled tokens of each text at most."""
    alphas: tuple[float, ...] = (0.0, 1.0, 4.0)
    seed: int = 0


@torch.no_grad()
def sampled(pair: Pair, openings: Sequence[Sequence[int]], how: Sampling, end: frozenset[int]) -> Texts:
    """Texts of every opening at every α; same input, same texts.

    Args:
        openings: tokens that texts begin with, BOS included where the model has one; none is empty.
        end: tokens that end a text.
    """
    starts = [tuple(o) for o in openings for _ in how.alphas for _ in range(how.samples)]
    alpha = torch.tensor([a for _ in openings for a in how.alphas for _ in range(how.samples)])
    length = torch.tensor([len(o) for o in starts])
    width = int(length.max()) + how.length
    draws = torch.from_numpy(np.random.default_rng([how.seed, 41]).random((width, len(starts))))
    tokens = torch.full((len(starts), width), -1, dtype=torch.int64)
    for i, start in enumerate(starts):
        tokens[i, : len(start)] = torch.tensor(start)
    adapted = torch.full(tokens.shape, torch.nan, dtype=torch.float64)
    live = torch.ones(len(starts), dtype=torch.bool)
    with pair.caches() as cached:
        for at in range(1, width):
            fed = tokens[:, at - 1 : at].clamp_min(0).to(pair.device)
            base, own = cached.feed(fed)
            asked = ((at >= length) & (at < length + how.length) & live).nonzero()[:, 0]
            if not len(asked):
                if not live.any():
                    break
                continue
            on = asked.to(pair.device)
            pick, log_p = _drawn(pair, base[on, 0], own[on, 0], alpha[asked], draws[at, asked])
            tokens[asked, at], adapted[asked, at] = pick, log_p
            live[asked] = ~torch.isin(pick, torch.tensor(sorted(end), dtype=torch.int64))
    return Texts(tokens.numpy(), length.numpy(), alpha.double().numpy(), adapted.numpy())


def _drawn(pair: Pair, base: Tensor, own: Tensor, alpha: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each row by inverse transform, and its log-probability under the adapted model.

    The base's normaliser is the same for all tokens and cancels: its logits are needed on plausible tokens
    alone.
    """
    row, token, logit, lse = plausible(pair.head, own, FLOOR)
    below = pair.head.picked(base[row], token) if pair.adapter != BASE else logit
    row, token = row.cpu(), token.cpu()
    kept = logit.double().cpu()
    score = kept + alpha.double()[row] * (kept - below.double().cpu())
    peak = torch.full((len(own),), -torch.inf, dtype=torch.float64).scatter_reduce_(0, row, score, "amax")
    weight = (score - peak[row]).exp()
    before = torch.cat([torch.zeros(1, dtype=torch.float64), weight.cumsum(0)])
    first = torch.searchsorted(row, torch.arange(len(own)))
    last = torch.searchsorted(row, torch.arange(len(own)), right=True)
    wanted = before[first] + draws * (before[last] - before[first])
    at = (torch.searchsorted(before[1:], wanted, right=True)).clamp(first, last - 1)
    return token[at], kept[at] - lse.cpu()[row[at]]
