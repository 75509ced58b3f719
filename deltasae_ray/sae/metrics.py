"""What a dictionary does on rows it was not trained on (science: FVU, L0, alive, effective latents, firing
rates)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import Dictionary

RATE_EDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Upper edges of the firing-rate histogram's bins; the first bin also holds latents that never fired."""


@dataclass(frozen=True)
class HeldOut:
    """Figures of one dictionary on held-out rows."""

    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − mean‖², the mean being the training rows'."""
    l0: float
    """Latents that fire per token. A TopK fixes it, so there it is no result."""
    alive: float
    """Share of the latents that fire on some training token."""
    effective_latents: float
    """exp H(p), p the latents' shares of the energy E[z²]."""
    effective_firing: float
    """exp H(p), p the latents' shares of all firings."""
    rates: tuple[int, ...]
    """Latents by firing rate, in bins that end at RATE_EDGES."""
    rows: int

    def figures(self) -> dict[str, float]:
        """Figures that are single numbers, as a tracker logs them."""
        return {
            name: float(getattr(self, name))
            for name in ("fvu", "l0", "alive", "effective_latents", "effective_firing")
        }


def fvu(
    x: Float[Tensor, "token d_model"], x_hat: Float[Tensor, "token d_model"], mean: Float[Tensor, " d_model"]
) -> float:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖² in fp64; 1 is what predicting the mean
    gives.

    Raises:
        DictionaryError: rows that all equal the mean, of which no share can be taken.
    """
    return _ratio(float((x - x_hat).double().square().sum()), float((x - mean).double().square().sum()))


def effective_number(weights: Float[Tensor, " latent"]) -> float:
    """exp H(p) of non-negative weights normalised to p: how many equal ones would be as spread out; 0 if all
    are 0."""
    p = weights.double()
    total = float(p.sum())
    if total <= 0:
        return 0.0
    p = p[p > 0] / total
    return float(torch.exp(-(p * p.log()).sum()))


def held_out(
    dictionary: Dictionary,
    x: Float[Tensor, "token d_model"] | np.ndarray,
    mean: Float[Tensor, " d_model"] | None = None,
) -> HeldOut:
    """All figures in one pass, block by block.

    Args:
        mean: what FVU is centred on; by default the mean of the dictionary's training rows, else that of x.

    Raises:
        DictionaryError: no rows, rows of another width, or rows that all equal the mean.
    """
    x = torch.as_tensor(x)
    if not len(x):
        raise DictionaryError("no held-out rows: harvest evaluation tokens too")
    centre = (
        mean
        if mean is not None
        else dictionary.mean
        if dictionary.mean is not None
        else x.double().mean(dim=0).float()
    )
    centre = centre.to(dictionary.W_dec.device)
    missed, total = 0.0, 0.0
    fired = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=dictionary.W_dec.device)
    energy = torch.zeros_like(fired)
    for rows, z in dictionary.passes(x):
        missed += float((rows - dictionary.decode(z)).double().square().sum())
        total += float((rows - centre).double().square().sum())
        fired += (z > 0).sum(dim=0)
        energy += z.square().sum(dim=0, dtype=torch.float64)
    rates = torch.bucketize(
        fired / len(x), torch.tensor(RATE_EDGES, dtype=torch.float64, device=fired.device)
    )
    return HeldOut(
        fvu=_ratio(missed, total),
        l0=float(fired.sum()) / len(x),
        alive=float(dictionary.alive.double().mean()),
        effective_latents=effective_number(energy),
        effective_firing=effective_number(fired),
        rates=tuple(torch.bincount(rates, minlength=len(RATE_EDGES)).tolist()),
        rows=len(x),
    )


def _ratio(missed: float, total: float) -> float:
    if total <= 0:
        raise DictionaryError("all rows equal the mean: there is no variance to leave unexplained")
    return missed / total
