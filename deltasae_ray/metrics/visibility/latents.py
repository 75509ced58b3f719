"""Latents that can be judged: found again by other seeds, about something with structure, and firing
often enough."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.firing.firings import FiringRows, Firings, fires
from deltasae_ray.metrics.geometry.latent_shares import REPEATS
from deltasae_ray.metrics.geometry.matching import best_cosines
from deltasae_ray.metrics.inputs import DictionaryLike

MIN_FIRINGS = 10
"""Firings, on training and evaluation rows together, below which a latent cannot be judged."""
MIN_STRONG = 6
"""The same of effective firings, (Σ z²)² / Σ z⁴: an encoder fires faintly where its feature is not."""

MOVES_ALIKE = 0.9
"""Cosine from which rows move the same way with two latents."""


@dataclass(frozen=True, eq=False)
class Active:
    """Living latents of one dictionary on training and evaluation rows, and the rows themselves."""

    index: Int[np.ndarray, " latent"]
    """Positions in the dictionary."""
    rows: Float[Tensor, "latent d_model"]
    """Decoder rows, of norm 1."""
    training: csr_array
    """Codes [row, latent]."""
    evaluation: csr_array
    """Codes [row, latent]."""

    @classmethod
    def of(cls, dictionary: DictionaryLike, training: Tensor, evaluation: Tensor) -> "Active":
        places = FiringRows(np.arange(len(training)), np.arange(len(evaluation))[None], 0)
        codes = Firings.of(dictionary, training.numpy(), evaluation.numpy(), places)
        index = np.flatnonzero(dictionary.alive.cpu().numpy())
        rows = unit_rows(dictionary.W_dec.detach().float().cpu()[index])
        return cls(index, rows, codes.training, codes.evaluation)

    @property
    def firings(self) -> Int[np.ndarray, " latent"]:
        """On training and evaluation rows together."""
        first, rest = (np.asarray(fires(x).sum(0)).ravel() for x in (self.training, self.evaluation))
        return (first + rest).astype(int)

    def power_sum(self, power: int) -> Float[np.ndarray, " latent"]:
        """Σ z^power of each latent over all rows."""
        first, rest = (np.asarray(x.power(power).sum(0)).ravel() for x in (self.training, self.evaluation))
        return first + rest

    @property
    def often(self) -> Bool[np.ndarray, " latent"]:
        """Latents that fire often enough to be judged."""
        square, fourth = self.power_sum(2), self.power_sum(4)
        effective = np.divide(square**2, fourth, out=np.zeros(len(self.index)), where=fourth > 0)
        return (self.firings >= MIN_FIRINGS) & (effective >= MIN_STRONG)

    def moved(self, training: Tensor, evaluation: Tensor) -> tuple[Tensor, Float[np.ndarray, " latent"]]:
        """Finds which way rows move with each latent, Σ z x / Σ z², and how well two halves agree.

        Args:
            training: rows, centred; the codes' order.
        """
        halves = []
        for part in (0, 1):
            total = torch.zeros(len(self.index), training.shape[1], dtype=torch.float64)
            for codes, x in ((self.training, training), (self.evaluation, evaluation)):
                here = np.array_split(np.arange(len(x)), 2)[part]
                total += torch.from_numpy(csr_array(codes[here].T) @ x.numpy()[here].astype(np.float64))
            halves.append(unit_rows(total))
        agreement = (halves[0] * halves[1]).sum(1).numpy()
        return unit_rows(halves[0] + halves[1]).float(), agreement


@dataclass(frozen=True, eq=False)
class Repeating:
    """Latents that other seeds found too, each with the direction that is judged."""

    latent: Int[np.ndarray, " kept"]
    """Positions among the living latents."""
    directions: Float[Tensor, "kept d_model"]
    by_movement: Bool[np.ndarray, " kept"]
    """Found again by which way rows move when it fires, not by its decoder row."""
    elsewhere: tuple[Float[Tensor, "kept d_model"], ...]
    """The same directions as each other seed has them."""


def repeating(own: Active, others: Sequence[Active], training: Tensor, evaluation: Tensor) -> Repeating:
    """Finds latents with a counterpart, |cos| at least .7, in every other dictionary.

    A strong and rare feature is often shared out among several latents, differently in each seed. So a
    latent counts too if rows move with it in a direction, the same in both halves of the rows, in which
    rows also move with a latent of every other seed (|cos| at least .9). Of several such with one direction
    the one whose own row is nearest to it is kept.

    Args:
        training: centred rows.
        evaluation: centred rows.
    """
    best = [best_cosines(own.rows, o.rows, absolute=True) for o in others]
    repeats = np.min(best, axis=0) >= REPEATS
    moved, agreement = own.moved(training, evaluation)
    again = ~repeats & (agreement >= REPEATS) & own.often
    ways = [o.moved(training, evaluation)[0] if again.any() else o.rows for o in others]
    for way in ways:
        again &= best_cosines(moved, way, absolute=True) >= MOVES_ALIKE
    kept, directions = list(np.flatnonzero(repeats)), own.rows[repeats]
    leaning = (own.rows * moved).sum(1).abs().numpy()
    for i in sorted(np.flatnonzero(again), key=lambda i: -leaning[i]):
        if not len(kept) or float((directions @ moved[i]).abs().max()) < REPEATS:
            kept.append(i)
            directions = torch.cat([directions, moved[i][None]])
    by_movement, rows = np.arange(len(kept)) >= repeats.sum(), repeats.sum()
    elsewhere = tuple(
        torch.cat([_nearest(directions[:rows], other.rows), _nearest(directions[rows:], way)])
        for other, way in zip(others, ways, strict=True)
    )
    return Repeating(np.array(kept, dtype=int), directions, by_movement, elsewhere)


def _nearest(directions: Tensor, rows: Tensor) -> Tensor:
    """The row that is nearest to each direction, of either sign."""
    return rows[(directions @ rows.T).abs().argmax(1)]
