"""How a dictionary is trained: the numbers, and the scaling of the data."""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deltasae_ray.errors import DictionaryError, PrecisionError
from deltasae_ray.sae.names import Architecture

MIN_ROWS = 64
"""Fewer rows than this cannot tell a dictionary from a list of the rows."""

MAX_NOT_FINITE = 1e-3
"""Share of rows with NaN or infinity that are dropped and counted; above, something is wrong with where they
come from."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained, apart from the data and the seed."""

    d_sae: int
    """Latents."""
    k: int
    """Active latents per token: of each (topk), or on average."""
    architecture: Architecture = "topk"
    """By SAELens' name; see `architectures`."""
    lr: float = 3e-3
    """Peak learning rate of Adam for up to 1024 latents; above, it falls with the square root of d_sae."""
    batch_tokens: int = 1024
    """Tokens per step; all of them if there are fewer."""
    steps: int = 1500
    """Optimizer steps."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = 0.3
    """Share of the steps, at the end, in which the learning rate falls to 0."""
    auxk: float = 1 / 32
    """Weight of the loss by which dead latents learn what the living ones leave over; 0 turns it off."""
    dead_tokens: int = 10_000_000
    """A latent is dead after this many tokens without firing, or after one epoch, whichever is fewer."""
    l1: float = 0.0
    """standard: weight of the codes' mean over tokens and latents, beside the squared error's mean over
    tokens and coordinates, of rows of mean norm 1; 0 adjusts it during training until k latents fire per
    token."""
    train_decoder: bool = True
    """Off, decoder rows stay the random unit rows that they started as, and encoder and biases learn to use
    them: a baseline."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise DictionaryError(
                f"architecture={self.architecture!r} cannot be trained here: use one of"
                f" {list(get_args(Architecture))}"
            )
        if self.k < 1 or self.d_sae < 2:
            raise DictionaryError(f"k={self.k} must be at least 1 and d_sae={self.d_sae} at least 2")
        if self.k > self.d_sae:
            raise DictionaryError(f"k={self.k} exceeds d_sae={self.d_sae}: lower k or raise d_sae")
        if self.steps < 1 or self.batch_tokens < 1:
            raise DictionaryError(
                f"steps={self.steps} and batch_tokens={self.batch_tokens} must be at least 1"
            )
        if not (0 < self.lr < math.inf and 0 <= self.auxk < math.inf and 0 <= self.l1 < math.inf):
            raise DictionaryError(
                f"lr={self.lr} must be above 0, auxk={self.auxk} and l1={self.l1} at least 0"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, constant, linear decay.

        Measured on 400 planted atoms of Zipfian frequency (d_model 192, k 8, 500 steps of 1024): held-out FVU
        and mean max-cosine of the atoms were .170, .726 at 1e-3; .108, .838 at 3e-3; .097, .860 at 6e-3;
        .109, .818 with a fifth of the latents dead at 12e-3. The fall with width is that of Gao et al. 2024
        (section 2, figure 3).
        """
        warm = max(1, round(self.warmup * self.steps))
        cool = max(1, round(self.decay * self.steps))
        return (
            self.lr
            * min(1.0, (1024 / self.d_sae) ** 0.5)
            * min(1.0, (step + 1) / warm, (self.steps - step) / cool)
        )


@dataclass(frozen=True)
class Scaling:
    """y = scale · (x − mean): one scalar for all tokens and coordinates, so that directions and angles
    stay."""

    mean: Float[Tensor, " d_model"]
    scale: float
    """√d_model / √E‖x‖² (raw second moment, as Gemma Scope and SAELens scale activations)."""


def finite_rows(x: Float[Tensor, "token d_model"], chunk: int = 65_536) -> Bool[Tensor, " token"]:
    """Which rows hold neither NaN nor infinity.

    Raises:
        PrecisionError: more than MAX_NOT_FINITE of them do; the count is named.
    """
    finite = torch.cat([torch.isfinite(rows).all(dim=1) for rows in x.split(chunk)])
    bad = len(x) - int(finite.sum())
    if bad > MAX_NOT_FINITE * len(x):
        raise PrecisionError(
            f"{bad} of {len(x)} rows hold NaN or infinity, and at most {MAX_NOT_FINITE:.1%} are dropped: find"
            " where they come from"
        )
    return finite


def measure(x: Float[Tensor, "token d_model"], chunk: int = 65_536) -> Scaling:
    """Mean and scale of the training rows, accumulated in fp64.

    Raises:
        DictionaryError: not a matrix, too few rows, or all rows equal (an adapter that changes nothing here).
        PrecisionError: NaN or infinity; the count is named.
    """
    if x.ndim != 2 or x.shape[0] < MIN_ROWS:
        raise DictionaryError(
            f"x has shape {tuple(x.shape)}: at least {MIN_ROWS} rows [token, d_model] are needed; harvest"
            " more tokens"
        )
    bad = sum(int((~torch.isfinite(rows).all(dim=1)).sum()) for rows in x.split(chunk))
    if bad:
        raise PrecisionError(
            f"{bad} of {len(x)} rows hold NaN or infinity: find where they come from before fitting"
        )
    mean = torch.stack([rows.double().sum(dim=0) for rows in x.split(chunk)]).sum(dim=0) / len(x)
    spread = sum(float((rows.double() - mean).square().sum()) for rows in x.split(chunk)) / len(x)
    energy = spread + float(mean.square().sum())
    # fp32 rows that are equal leave a spread of rounding size around their mean.
    if spread <= 1e-12 * energy or energy == 0.0:
        raise DictionaryError(
            f"all {len(x)} rows are equal: there is no change to explain (an adapter may be silent at this"
            " layer)"
        )
    return Scaling(mean.float(), (x.shape[1] / energy) ** 0.5)
