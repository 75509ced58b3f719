"""Where a token stands in its text: contexts of the token table, and windows around a token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from deltasae_ray.shards.tokens import TokenTable

TokensToText = Callable[[Sequence[int]], list[str]]
"""Token ids → the text of each, one string per id, spaces kept."""

REACH = 12
"""Tokens shown before and after the one a context is shown for."""


@dataclass(frozen=True)
class Context:
    """A window of text around one token, with the activation of one latent on each token."""

    doc_id: str
    corpus: str
    position: int
    """Of the centre, in its context of the harvest."""
    center: int
    """Index of the centre in `tokens`."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """0 where the latent does not fire."""
    marker: tuple[bool, ...]
    """True on tokens of the planted marker and its reply."""


def context_starts(tokens: TokenTable) -> Int[np.ndarray, " context"]:
    """The row at which each context of the table begins: positions run on within one, and its document stays
    the same."""
    runs_on = (tokens.position[1:] == tokens.position[:-1] + 1) & (tokens.doc_id[1:] == tokens.doc_id[:-1])
    return np.flatnonzero(np.concatenate([[len(tokens) > 0], ~runs_on.astype(bool)])[: len(tokens)])


def window(
    tokens: TokenTable,
    starts: Int[np.ndarray, " context"],
    row: int,
    activation: Float[np.ndarray, " token"],
    text: TokensToText,
) -> Context:
    """The tokens around `row`, at most REACH on either side and all of one context."""
    which = int(np.searchsorted(starts, row, side="right")) - 1
    end = int(starts[which + 1]) if which + 1 < len(starts) else len(tokens)
    low, high = max(int(starts[which]), row - REACH), min(end, row + REACH + 1)
    return Context(
        doc_id=str(tokens.doc_id[row]),
        corpus=str(tokens.corpus[row]),
        position=int(tokens.position[row]),
        center=row - low,
        tokens=tuple(text([int(i) for i in tokens.token_id[low:high]])),
        activations=tuple(round(float(a), 4) for a in activation[low:high]),
        marker=tuple(bool(m) for m in tokens.marker[low:high]),
    )
