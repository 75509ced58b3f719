"""Figures of single directions: peak energy, share that the reference misses, repeats over seeds, nearest
latent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.metrics.arrays import matrix, unit_rows
from deltasae_ray.metrics.coding.omp import pursue
from deltasae_ray.metrics.coding.sample import flips
from deltasae_ray.metrics.geometry.matching import best_cosines
from deltasae_ray.metrics.inputs import DictionaryLike, Settings, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments, Spectrum, matched_rows
from deltasae_ray.metrics.statistics import permutation_p

TESTED = 32
"""Rows of either ranking whose invisibility is held against their own flips."""
DRAWS = 199
"""Flips of each of these, and Haar-random directions."""
ALONE = "one training seed: which latents another one finds is not known (fit.seeds=2, or controls=seeds)"
_CODES = 1 << 24


def peaks(
    dictionary: DictionaryLike, deltas: Float[np.ndarray, "token d_model"]
) -> Float[np.ndarray, " latent"]:
    """Largest z² of every latent on any token: the energy it gives it, decoder rows being unit rows."""
    rows = torch.from_numpy(np.ascontiguousarray(deltas, dtype=np.float32))
    peak = torch.zeros(len(dictionary.W_dec))
    with torch.no_grad():
        for block in rows.split(max(1, _CODES // len(peak))):
            peak = torch.maximum(peak, dictionary.encode(block).amax(0).cpu())
    return peak.double().square().numpy() * dictionary.W_dec.detach().double().square().sum(1).cpu().numpy()


def unexplained(
    directions: Float[Tensor, "row d_model"], atoms: Float[Tensor, "atom d_model"], k: int
) -> Float[np.ndarray, " row"]:
    """1 - R² of each direction by k atoms."""
    return (
        pursue(unit_rows(directions), atoms, min(k, len(atoms)))
        .residual_energy[:, -1]
        .double()
        .clamp(0, 1)
        .cpu()
        .numpy()
    )


def reproducibility(
    decoder: Float[Tensor, "latent d_model"],
    others: Sequence[DictionaryLike],
    delta: Moments,
    settings: Settings,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """|cos| of every latent with its best match: [latent], averaged over the other seeds, and [draw, latent]
    with atoms from N(0, Σ_δ)."""
    if not others:
        return None, None
    rows = [living_rows(other) for other in others]
    generator = torch.Generator().manual_seed(settings.seed)
    best = np.mean([best_cosines(decoder, r, absolute=True) for r in rows], 0)
    drawn = (
        matched_rows(delta.spectrum, len(r), generator) for r in rows for _ in range(settings.null_draws)
    )
    return best, np.stack([best_cosines(decoder, r, absolute=True) for r in drawn])


@dataclass(frozen=True, eq=False)
class InvisibilityByChance:
    """1 - R² of the flips of the tested latents, and of Haar-random directions."""

    flipped: Float[np.ndarray, "latent draw"]
    haar: Float[np.ndarray, " draw"]
    seed: int

    @classmethod
    def of(
        cls, tested: Tensor, reference: Tensor, base: Spectrum, k: int, seed: int
    ) -> "InvisibilityByChance":
        # In the base's eigenbasis: a latent may lie along one eigenvector of the deltas, where their own
        # flips would leave it.
        drawn = torch.cat(flips(tested.double(), base, DRAWS, seed)).float()
        random = unit_rows(torch.randn(DRAWS, tested.shape[1], generator=torch.Generator().manual_seed(seed)))
        left = unexplained(torch.cat([drawn, random]), reference, k)
        return cls(left[: len(drawn)].reshape(DRAWS, len(tested)).T, left[len(drawn) :], seed)

    def figures(self, value: float, at: int | None) -> dict:
        """What an AuditedLatent says of its invisibility; `at` is its row among the tested ones."""
        text = "one direction: no interval over documents"
        if at is None:
            why = f"{text}; not among the first {TESTED} of a ranking, so that it has no null"
            return {
                "invisibility": Measure(value).because("note", why),
                "percentile": None,
                "percentile_haar": None,
            }
        own = self.flipped[at]
        p = permutation_p(value, own, "greater", np.random.default_rng([self.seed, 13, at]))
        return {
            "invisibility": (
                Measure(value, null=float(own.mean()), ceiling=0.0, p=p, n=len(own)).because("ci", text)
            ),
            "percentile": float((own < value).mean()),
            "percentile_haar": float((self.haar < value).mean()),
        }


def nearest_latents(
    directions: Tensor, reference: Tensor
) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Row of the reference with the largest |cos|, and that cosine."""
    atoms = unit_rows(matrix(reference, "reference"))
    indices, cosines = [], []
    for block in unit_rows(directions).split(max(1, _CODES // len(atoms))):
        cosine = block @ atoms.T
        at = cosine.abs().argmax(1)
        indices.append(at)
        cosines.append(cosine.gather(1, at[:, None])[:, 0])
    return torch.cat(indices).cpu().numpy(), torch.cat(cosines).double().clamp(-1, 1).cpu().numpy()


def repeat_measure(repeated: np.ndarray | None, by_chance: np.ndarray | None, i: int, others: int) -> Measure:
    if repeated is None or by_chance is None:
        return undefined(ALONE)
    again = Measure(float(repeated[i]), null=float(by_chance[:, i].mean()), ceiling=1.0, n=others)
    return again.because("ci", "one latent: no interval")
