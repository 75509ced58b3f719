"""How far the atoms of a reference can express a direction, beside what they express of directions that
they cannot know."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.coding.omp import pursue
from deltasae_ray.metrics.moments import Moments, Spectrum, outside

ATOMS = 2
"""Reference atoms that may express one latent: a child is parent + child less the parent."""
ENOUGH = 0.9
"""Place from which a latent counts as expressed: a cosine of .95 is no finding where base latents reach
.99."""
TURNED = 0.5
"""|cos| of a flip with its row from which it is still much of the row: that along one eigenvector turns
nowhere."""
NEARER = 0.3
"""Place, from the absent median (0) to the present one (1), under which a latent is not expressed.

Planted: absent features lie at -.4 to 0, mixtures of two features of which the reference has one at .3
    and above.
"""


@dataclass(frozen=True, eq=False)
class Metric:
    """Three ways to measure how much of a direction is expressed; the best counts, for nulls too.

    As it stands; outside the direction of the mean change, towards which fitted latents lean; and there
    with directions in which the deltas vary more than on average counting less, since latents of a short
    training lean towards those too.
    """

    mean: Float[Tensor, " d_model"]
    soft: Float[Tensor, "d_model d_model"]
    base: Spectrum
    """Of the base activations."""

    @classmethod
    def of(cls, deltas: Moments, base: Moments) -> "Metric":
        """From moments of the training deltas and of the base activations on the same rows."""
        spectrum = deltas.outside_mean().spectrum
        scale = 1 / (1 + spectrum.values / spectrum.values.mean()).sqrt()
        return cls(
            deltas.mean.float(), (spectrum.vectors * scale @ spectrum.vectors.T).float(), base.spectrum
        )

    def plain(self) -> "Metric":
        """Directions as they stand alone: in a change of few directions the mean is one of them, and outside
        it what is written and what is not may be one line."""
        width = len(self.mean)
        return Metric(torch.zeros(width), torch.eye(width), self.base)

    def expressed(
        self, rows: Float[Tensor, "row d_model"], atoms: Float[Tensor, "atom d_model"], k: int = ATOMS
    ) -> Float[np.ndarray, " row"]:
        """Multiple correlation, 0..1, of each row with the k atoms that express it best, of any sign."""
        rows, atoms = unit_rows(rows.float()), unit_rows(atoms.float())
        x, held = (unit_rows(outside(some, self.mean)) for some in (rows, atoms))
        k = min(k, len(atoms))
        best = torch.zeros(len(rows), dtype=torch.float64)
        for one, other in ((rows, atoms), (x, held), (x @ self.soft, held @ self.soft)):
            energy = pursue(one, other, k).residual_energy.double()
            left = energy[:, -1] / energy[:, 0].clamp_min(torch.finfo(torch.float64).tiny)
            best = torch.maximum(best, (1 - left).clamp(0, 1))
        return best.sqrt().numpy()

    def flipped(
        self, rows: Float[Tensor, "row d_model"], draws: int, seed: int
    ) -> Float[Tensor, "flip d_model"]:
        """Turns rows by random sign flips in the eigenbasis of the base activations.

        What they share with the base's second moments they keep, and they are in no dictionary. The deltas'
        own eigenbasis would not do: flips there turn nothing where the deltas live in few directions. A flip
        that turns next to nothing, of a row along a massive direction, gives way to a direction at random.
        """
        rng, basis = np.random.default_rng([seed, 11]), self.base.vectors.float()
        inside = unit_rows(rows.float()) @ basis
        signs = torch.from_numpy(
            rng.choice([-1.0, 1.0], size=(draws, len(rows), basis.shape[1])).astype(np.float32)
        )
        still = (inside.square() * signs).sum(2).flatten().abs() >= TURNED
        flips = (inside * signs).flatten(0, 1) @ basis.T
        flips[still] = unit_rows(
            torch.from_numpy(rng.standard_normal((int(still.sum()), len(basis))).astype(np.float32))
        )
        return flips


@dataclass(frozen=True, eq=False)
class Scale:
    """What latents score that the reference has, and what directions score that it cannot have."""

    present: Float[np.ndarray, " base_latent"]
    """Of repeating latents of held-out base dictionaries, ascending."""
    absent: Float[np.ndarray, " flip"]
    """Of flipped latents, ascending."""

    @property
    def bar(self) -> float:
        """Score under which a latent is no more expressed than an absent one."""
        low, high = float(np.median(self.absent)), float(np.median(self.present))
        return low + NEARER * (high - low)

    @property
    def enough(self) -> float:
        """Score from which a latent is as good as expressed, however close base latents lie together."""
        low, high = float(np.median(self.absent)), float(np.median(self.present))
        return low + ENOUGH * (high - low)

    @property
    def unseen(self) -> float:
        """Share of the base latents that the reference does not express either."""
        return float((self.present < self.bar).mean())

    @property
    def separates(self) -> bool:
        """Whether the reference expresses base latents better than what it cannot know."""
        return float(np.median(self.present)) > float(np.quantile(self.absent, 0.99)) + 0.1

    def p(self, scores: Float[np.ndarray, " latent"]) -> Float[np.ndarray, " latent"]:
        """Probability that a latent which the reference has scores as low.

        The rank among base latents; below the lowest tenth's reach an exponential tail, so that one latent
        far below all of them can stand a correction for many.
        """
        missed = 1 - self.present[::-1]  # ascending: what base latents lack
        lack, n = 1 - np.asarray(scores), len(missed)
        above = n - np.searchsorted(missed, lack, side="left")
        worst = missed[-max(2, n // 10) :]
        step = max(float((worst - worst[0]).mean()), 1e-3)
        beyond = np.exp(-np.maximum(lack - missed[-1], 0) / step)
        return np.clip((above + beyond) / (n + 1), 0, 1)
