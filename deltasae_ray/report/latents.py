"""Latents of a delta dictionary, each with its strongest contexts beside random ones."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from deltasae_ray.report.contexts import Context, TokensToText, context_starts, window
from deltasae_ray.shards.tokens import TokenTable

_CODES = 1 << 24
"""Dense codes held at once (64 MB)."""


class Encoder(Protocol):
    """What is needed of a dictionary; tensors may be torch's or numpy's."""

    @property
    def alive(self) -> Any: ...
    @property
    def energy(self) -> Any: ...
    def encode(self, x: np.ndarray, /) -> Any: ...


@dataclass(frozen=True)
class LatentCard:
    """One latent, as the report shows it."""

    latent: int
    """Index in the dictionary."""
    rank: int
    """1 for the latent with the largest share of the energy."""
    energy_share: float
    """Its E[z²] on the training tokens over that of all latents that are alive."""
    density: float
    """Share of the evaluation tokens on which it fires."""
    firing_tokens: int
    """Evaluation tokens on which it fires: what the random contexts are drawn from."""
    peak: float
    """Its largest activation on the evaluation tokens, in raw units."""
    top: tuple[Context, ...]
    """Its strongest tokens, of different documents."""
    random: tuple[Context, ...]
    """Drawn uniformly, without repetition, from the tokens on which it fires."""


@dataclass(frozen=True)
class Codes:
    """The codes of evaluation rows, sparse, latents in columns; rows at position 0 (BOS) hold none."""

    matrix: sparse.csc_array
    order: Int[np.ndarray, " latent"]
    """Latents that are alive, by falling energy: the latent table."""
    energy_share: Float[np.ndarray, " d_sae"]
    """Of the energy of the living; meaningless for the dead."""

    def column(self, latent: int) -> tuple[Int[np.ndarray, " firing"], Float[np.ndarray, " firing"]]:
        """Rows on which a latent fires, ascending, and its activations there."""
        low, high = self.matrix.indptr[latent], self.matrix.indptr[latent + 1]
        return self.matrix.indices[low:high], self.matrix.data[low:high]


def encode_rows(dictionary: Encoder, deltas: Float[np.ndarray, "token d_model"], tokens: TokenTable) -> Codes:
    """Codes of every row, block by block."""
    alive, energy = (
        np.array(dictionary.alive.tolist(), dtype=bool),
        np.array(dictionary.energy.tolist(), dtype=np.float64),
    )
    rows_at_once = max(1, _CODES // len(alive))
    blocks = []
    for start in range(0, len(deltas), rows_at_once):
        codes = dictionary.encode(deltas[start : start + rows_at_once])
        dense = codes.detach().cpu().numpy() if hasattr(codes, "detach") else np.asarray(codes)
        # BOS carries massive activations that are the same in every context: no latent is shown for it.
        blocks.append(
            sparse.csr_array(dense.astype(np.float32) * tokens.used[start : start + rows_at_once, None])
        )
    matrix = (
        sparse.csc_array(sparse.vstack(blocks))
        if blocks
        else sparse.csc_array((0, len(alive)), dtype=np.float32)
    )
    matrix.sort_indices()
    total = float(energy[alive].sum())
    share = energy / total if total > 0 else np.zeros(len(alive))
    order = np.array(sorted(np.flatnonzero(alive), key=lambda i: (-share[i], i)), dtype=np.int64)
    return Codes(matrix, order, share)


def latent_cards(
    codes: Codes,
    tokens: TokenTable,
    text: TokensToText,
    chosen: Collection[int],
    *,
    contexts: int = 5,
    seed: int = 0,
) -> tuple[LatentCard, ...]:
    """Cards of the latents in `chosen`, in the table's order, each with at most `contexts` contexts of either
    kind."""
    starts = context_starts(tokens)
    usable = max(1, int(tokens.used.sum()))
    cards, wanted = [], set(chosen)
    for rank, latent in enumerate(codes.order.tolist(), start=1):
        if latent not in wanted:
            continue
        rows, values = codes.column(latent)
        activation = np.zeros(len(tokens), dtype=np.float32)
        activation[rows] = values
        # Keyed by the latent: the contexts of one do not change with how many others are shown.
        rng = np.random.default_rng([seed, latent])
        drawn = rng.choice(rows, size=min(contexts, len(rows)), replace=False)
        cards.append(
            LatentCard(
                latent=latent,
                rank=rank,
                energy_share=float(codes.energy_share[latent]),
                density=len(rows) / usable,
                firing_tokens=len(rows),
                peak=float(values.max()) if len(values) else 0.0,
                top=tuple(
                    window(tokens, starts, row, activation, text)
                    for row in _strongest(rows, values, tokens, contexts)
                ),
                random=tuple(window(tokens, starts, int(row), activation, text) for row in drawn),
            )
        )
    return tuple(cards)


def _strongest(
    rows: Int[np.ndarray, " firing"], values: Float[np.ndarray, " firing"], tokens: TokenTable, count: int
) -> list[int]:
    """The strongest row of each document, strongest first."""
    chosen: dict[str, int] = {}
    for i in np.argsort(-values, kind="stable"):
        chosen.setdefault(str(tokens.doc_id[rows[i]]), int(rows[i]))
        if len(chosen) == count:
            break
    return list(chosen.values())
