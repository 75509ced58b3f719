"""Is the planted marker found? Average precision of every latent for the marker's tokens, against a
permutation null."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from deltasae_ray.report.contexts import context_starts
from deltasae_ray.report.latents import Codes
from deltasae_ray.shards.tokens import TokenTable

LEVEL = 0.01
"""p at or below which the best latent is better than chance."""
STRONGEST = 20
"""Tokens that a reader of the table sees first; half of them must be marker tokens for the marker to count as
found."""


@dataclass(frozen=True)
class PlantedFinding:
    """What became of the planted marker in one dictionary."""

    recovered: bool
    """Better than chance, and plain to a reader of the latent's strongest tokens."""
    latent: int | None
    """The latent that tells marker tokens best; None where that could not be tested."""
    table_rank: int | None
    """Its place in the latent table, by energy, from 1."""
    ap: float | None
    """Its average precision for the marker's tokens."""
    null_ap: float | None
    """The best latent's average precision when markers are moved to other places, mean over permutations."""
    p: float | None
    """(1 + permutations whose best latent does as well) / (permutations + 1)."""
    text: str
    """The finding as one sentence."""


def find_planted(
    codes: Codes, tokens: TokenTable, *, permutations: int = 199, seed: int = 0
) -> PlantedFinding:
    """Looks for the marker in every latent that is alive, over the evaluation rows of the texts that carry
    it.

    The null gives every context the marker of another, at the same position, within the texts that carry
    markers. So a latent that only knows the text, or a position, gets no credit; and since the best of all
    latents is taken each time, looking at many is paid for.
    """
    rows = _rows_with_markers(tokens)
    label = tokens.marker[rows].astype(bool)
    if not label.any():
        return PlantedFinding(
            False, None, None, None, None, None, "not tested: no marker token lies in the evaluation rows"
        )
    if not len(codes.order):
        return PlantedFinding(
            False, None, None, None, None, None, "not tested: every latent of this dictionary is dead"
        )
    ranking = _Ranking.of(codes, rows, len(tokens))
    scores = ranking.average_precision(label)
    place = int(np.argmax(scores))
    rng = np.random.default_rng([seed, len(rows)])
    context, place_in_it = _places(tokens, rows)
    marked = np.zeros((context.max() + 1, place_in_it.max() + 1), dtype=bool)
    marked[context, place_in_it] = label
    null = np.array([
        ranking.average_precision(marked[rng.permutation(len(marked))][context,
            place_in_it]).max() for _ in range(permutations)
    ])  # fmt: skip
    p = float((1 + (null >= scores[place]).sum()) / (permutations + 1))
    hits, shown = ranking.strongest(place, label)
    recovered = p <= LEVEL and shown > 0 and 2 * hits >= shown
    latent, ap, chance = int(codes.order[place]), float(scores[place]), float(null.mean())
    figures = f"average precision {ap:.2f} against {chance:.2f} by chance, p = {p:.3g}"
    figures += f", {hits} of its {shown} strongest tokens are the marker's"
    where = f"rank {place + 1} of the latent table"
    text = (
        f"found at {where}: latent {latent}, {figures}"
        if recovered
        else f"not found: the best latent ({latent}, {where}) has {figures}"
    )
    return PlantedFinding(recovered, latent, place + 1, ap, chance, p, text)


def _rows_with_markers(tokens: TokenTable) -> Int[np.ndarray, " row"]:
    carriers = set(tokens.corpus[tokens.marker.astype(bool)])
    return np.flatnonzero(np.array([c in carriers for c in tokens.corpus], dtype=bool) & tokens.used)


def _places(
    tokens: TokenTable, rows: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """The context of each row, numbered from 0 up, and its position there."""
    context = np.searchsorted(context_starts(tokens), rows, side="right")
    return np.unique(context, return_inverse=True)[1], tokens.position[rows].astype(np.int64)


@dataclass(frozen=True)
class _Ranking:
    """The firing rows of all latents of the table, each latent's by falling activation: labels change, the
    order does not."""

    rows: Int[np.ndarray, " firing"]
    """Index into the labels."""
    bounds: Int[np.ndarray, " latent_and_end"]
    tie_end: Int[np.ndarray, " firing"]
    """Last place of the firings that are equal to this one."""
    size: int

    @classmethod
    def of(cls, codes: Codes, rows: Int[np.ndarray, " row"], num_tokens: int) -> "_Ranking":
        index = np.full(num_tokens, -1)
        index[rows] = np.arange(len(rows))
        columns, ends, offset = [], [], 0
        for latent in codes.order.tolist():
            fired, values = codes.column(latent)
            inside = index[fired] >= 0
            fired, values = index[fired[inside]], values[inside]
            by_value = np.argsort(-values, kind="stable")
            values = values[by_value]
            last = (
                np.flatnonzero(np.append(values[1:] != values[:-1], True))
                if len(values)
                else np.empty(0, np.int64)
            )
            ends.append(offset + last[np.searchsorted(last, np.arange(len(values)))])
            columns.append(fired[by_value])
            offset += len(values)
        bounds = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
        return cls(
            np.concatenate(columns).astype(np.int64),
            bounds.astype(np.int64),
            np.concatenate(ends).astype(np.int64),
            len(rows),
        )

    def average_precision(self, label: Bool[np.ndarray, " row"]) -> Float[np.ndarray, " latent"]:
        """Average precision as scikit-learn's, ties included; rows on which a latent does not fire are tied
        at the end."""
        hit = label[self.rows].astype(np.float64)
        total, start, end = float(label.sum()), self.bounds[:-1], self.bounds[1:]
        if total == 0:  # all markers of a permutation fell beyond the ends of shorter contexts
            return np.zeros(len(start))
        before = np.concatenate([[0.0], np.cumsum(hit)])
        latent = np.repeat(np.arange(len(start)), end - start)
        precision = (before[self.tie_end + 1] - before[start[latent]]) / (self.tie_end + 1 - start[latent])
        gained = np.concatenate([[0.0], np.cumsum(hit * precision)])
        missed = total - (before[end] - before[start])
        return (gained[end] - gained[start] + missed * total / self.size) / total

    def strongest(self, place: int, label: Bool[np.ndarray, " row"]) -> tuple[int, int]:
        """Marker tokens among the strongest tokens of a latent, and how many those are."""
        shown = self.rows[self.bounds[place] : self.bounds[place + 1]][:STRONGEST]
        return int(label[shown].sum()), len(shown)
