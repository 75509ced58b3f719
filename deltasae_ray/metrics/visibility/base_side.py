"""What a decision asks of the base model's side alone: the same for every change at a layer that is held
against one reference, so that it is computed once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.coding.dictionary_coding import spread
from deltasae_ray.metrics.firing.firings import FiringRows, Firings
from deltasae_ray.metrics.geometry.latent_shares import REPEATS
from deltasae_ray.metrics.geometry.matching import best_cosines
from deltasae_ray.metrics.inputs import DictionaryLike, living_rows
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.visibility.structured import Texts

MOST_PRESENT = 384
"""Latents of each base dictionary that are looked at, spread evenly."""


@dataclass(frozen=True, eq=False)
class BaseSide:
    """Base activations with the dictionaries that are fitted to them; what follows is computed when it is
    first asked for, and kept."""

    training: Float[Tensor, "fit_token d_model"]
    evaluation: Float[Tensor, "token d_model"]
    corpora: np.ndarray | None
    """Text of each evaluation row."""
    reference: DictionaryLike
    bases: tuple[DictionaryLike, ...]
    """Held out from the reference."""
    seed: int

    @cached_property
    def moments(self) -> Moments:
        """Of the activations on the training rows."""
        return Moments.of(self.training)

    @cached_property
    def latents(self) -> tuple[Float[Tensor, "latent d_model"], Int[np.ndarray, " latent"]]:
        """Repeating latents of base dictionaries that are about something with structure, as decoder rows of
        norm 1, and which dictionary each is of."""
        repeats = repeating_rows(self.bases)
        base, every = np.repeat(np.arange(len(repeats)), [len(x) for x in repeats]), torch.cat(repeats)
        shaped = Texts.of(self.evaluation, self.moments, self.corpora).structured(every, self.seed)
        return every[torch.from_numpy(shaped)], base[shaped]

    @cached_property
    def firings(self) -> Firings:
        """Of the reference, on all rows."""
        places = FiringRows(np.arange(len(self.training)), np.arange(len(self.evaluation))[None], 0)
        return Firings.of(self.reference, self.training.numpy(), self.evaluation.numpy(), places)


def repeating_rows(bases: Sequence[DictionaryLike]) -> list[Tensor]:
    """Decoder rows, of norm 1, of latents that every other base dictionary has too, by base dictionary."""
    repeats = []
    for base in bases:
        own = unit_rows(living_rows(base)).cpu()
        own = own[spread(len(own), MOST_PRESENT)]
        for other in bases:
            if other is not base:
                own = own[torch.from_numpy(best_cosines(own, living_rows(other), absolute=True) >= REPEATS)]
            if not len(own):
                break
        repeats.append(own)
    return repeats
