"""Repeating latents of a delta dictionary, and which of them can be judged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from deltasae_ray.metrics.geometry.latent_shares import REPEATS
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.visibility.latents import MIN_FIRINGS, MIN_STRONG, Active, repeating
from deltasae_ray.metrics.visibility.rows import Rows
from deltasae_ray.metrics.visibility.structured import Texts


@dataclass(frozen=True, eq=False)
class Kept:
    """Repeating latents with the directions that are judged, in the dictionary's order."""

    index: Int[np.ndarray, " latent"]
    """Positions in the dictionary."""
    directions: Float[Tensor, "latent d_model"]
    elsewhere: tuple[Float[Tensor, "latent d_model"], ...]
    """The same directions as each other seed has them."""
    firings: Int[np.ndarray, " latent"]
    able: Bool[np.ndarray, " latent"]
    """Which of them can be judged."""
    training: csr_array
    """Codes of those, on the training rows."""
    evaluation: csr_array
    """Codes of those, on the evaluation rows."""
    reasons: tuple[str, ...]
    """How many there are, and why the others cannot be judged."""

    @classmethod
    def of(
        cls, dictionary: DictionaryLike, others: Sequence[DictionaryLike], rows: Rows, seed: int
    ) -> "Kept":
        """Finds the latents that every other dictionary has too, that fire often, and that are no part
        of what is dense."""
        mean = rows.training.mean(0)
        own = Active.of(dictionary, rows.training, rows.deltas)
        seeds = [Active.of(s, rows.training, rows.deltas) for s in others]
        repeats = repeating(own, seeds, rows.training - mean, rows.deltas - mean)
        order = np.argsort(repeats.latent)
        latent, directions = repeats.latent[order], repeats.directions[torch.from_numpy(order)]
        elsewhere = tuple(x[torch.from_numpy(order)] for x in repeats.elsewhere)
        often = own.often[latent]
        shaped = Texts.of(rows.deltas, rows.moments, rows.corpora).structured(directions, seed)
        able = often & shaped
        reasons = [
            f"{len(latent)} of {len(own.index)} latents repeat (cosine {REPEATS:g}), "
            f"{able.sum()} of them fire often enough and have structure"
        ]
        seldom = f"fire fewer than {MIN_FIRINGS} times, or on fewer than {MIN_STRONG} rows with strength"
        dense = "are not told from Gaussian rows of the same covariance"
        for left, why in ((~often, seldom), (often & ~shaped, dense)):
            if left.any():
                reasons.append(f"{left.sum()} latents cannot be judged: they {why}")
        first, rest = (csr_array(x[:, latent[able]]) for x in (own.training, own.evaluation))
        firings = own.firings[latent]
        return cls(own.index[latent], directions, elsewhere, firings, able, first, rest, tuple(reasons))
