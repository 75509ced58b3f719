"""Whether rows vary along a direction otherwise than Gaussian rows of the same covariance would.

Along a feature they do; along what is dense, or only differs between corpora, they do not.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from scipy.stats import false_discovery_control
from torch import Tensor

from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.coding.dictionary_coding import spread
from deltasae_ray.metrics.moments import Moments

RIDGE = 0.1
"""Of the mean eigenvalue, added to all where a covariance is inverted."""
FLIPS, DRAWN = 3, 1000
"""Sign flips of every latent behind the null of structure, and how many there are at least of all
latents together."""
RATE = 0.05
"""False discovery rate at which a direction counts as one with structure."""
NARROW = 12.0
"""Participation ratio under which the statistic is held against its distribution on Gaussian rows too."""
CLUSTERED = 5.0
"""By which rows of one document may inflate it there."""
_CLIP = 4.0
"""Robust standard deviations at which projections are cut, so that no few rows hide what is common."""
_FOR_MEDIANS = 500
"""Rows from which medians are taken."""
_MOST = 8192
"""Rows of a corpus that are looked at, spread evenly."""
_FEWEST = 50
"""Rows of a corpus, below which it says nothing about shapes."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Evaluation rows of each corpus in the eigenbasis of that corpus, divided by √(eigenvalue + ridge).

    Projections then weigh what is dense neither as it stands (it would hide a feature that leans towards
    it) nor by the inverse covariance (which would find the feature in a dense direction that leans towards
    it).
    """

    rows: tuple[Float[Tensor, "token d_model"], ...]
    basis: tuple[Float[Tensor, "d_model d_model"], ...]
    narrow: bool = False
    """Whether the rows live in so few directions that flips turn little."""

    @classmethod
    def of(cls, evaluation: Tensor, training: Moments, corpora: np.ndarray | None) -> "Texts":
        """Whitens by moments of the training rows; by its own evaluation rows where a corpus is one of
        several."""
        rows, bases, widest = [], [], 0.0
        for text in [None] if corpora is None or len(np.unique(corpora)) == 1 else np.unique(corpora):
            some = evaluation if text is None else evaluation[torch.from_numpy(corpora == text)]
            if len(some) < _FEWEST:
                continue
            some = some[spread(len(some), _MOST)]
            spectrum = (training if text is None else Moments.of(some)).spectrum
            widest = max(widest, spectrum.participation_ratio)
            white = spectrum.vectors / (spectrum.values + RIDGE * spectrum.values.mean()).sqrt()
            rows.append((some.double() - some.double().mean(0)).float() @ white.float())
            bases.append(spectrum.vectors.float())
        return cls(tuple(rows), tuple(bases), widest < NARROW)

    def structured(
        self, directions: Float[Tensor, "latent d_model"], seed: int
    ) -> Bool[np.ndarray, " latent"]:
        """Tells which directions have structure within some corpus, against random sign flips there.

        So neither corpora that differ, nor tokens that differ in size, nor what is dense looks like a
        feature.
        """
        if not len(directions) or not self.rows:
            return np.zeros(len(directions), dtype=bool)
        flips = max(FLIPS, -(-DRAWN // len(directions)))
        rng, unit = np.random.default_rng([seed, 12]), unit_rows(directions.float())
        energy, null = np.zeros((2, len(unit))), np.zeros((flips, 2, len(unit)))
        for rows, basis in zip(self.rows, self.basis, strict=True):
            inside = unit @ basis
            energy += departures(rows @ inside.T)
            for flip in range(flips):
                signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=inside.shape).astype(np.float32))
                null[flip] += departures(rows @ (inside * signs).T)
        p = np.ones(len(unit))
        for way, own in enumerate(energy):
            drawn = np.sort(null[:, way].ravel())
            rank = np.searchsorted(drawn, own, side="left")
            p = np.minimum(p, 2 * (1 + len(drawn) - rank) / (len(drawn) + 1))
        if self.narrow:
            p = np.minimum(p, stats.chi2.sf(energy[0] / CLUSTERED, 2 * len(self.rows)))
        return false_discovery_control(np.minimum(1, p)) <= RATE


def departures(y: Float[Tensor, "token latent"]) -> Float[np.ndarray, "way latent"]:
    """How far each column is from Gaussian (Jarque and Bera): of all rows, and with the far ones cut.

    The first sees what is rare and strong; beside such a feature only the second sees the others.
    """
    some = y[:: max(1, len(y) // _FOR_MEDIANS)].T.contiguous()  # medians cost more than all the rest
    middle = _medians(some)
    spread = 1.4826 * _medians((some - middle[:, None]).abs_())
    robust = (y - middle) / spread.clamp_min(torch.finfo(torch.float32).tiny)
    return np.stack([_jarque_bera(y), _jarque_bera(robust.clamp(-_CLIP, _CLIP))])


def _medians(rows: Tensor) -> Tensor:
    """The lower median of each row; numpy's is three times as fast as torch's."""
    half = (rows.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(rows.numpy(), half, axis=1)[:, half].copy())


def _jarque_bera(y: Tensor) -> np.ndarray:
    centred = y - y.mean(0)
    square = centred * centred
    variance = square.mean(0).clamp_min(torch.finfo(torch.float32).tiny)
    skewness = (centred.mul_(square)).mean(0) / variance.pow(1.5)
    excess = square.mul_(square).mean(0) / variance.square() - 3
    return (len(y) * (skewness.double().square() / 6 + excess.double().square() / 24)).numpy()
