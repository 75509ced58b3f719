"""One dictionary from one matrix of rows, with defaults that fit a notebook."""

import logging

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.metrics import effective_number
from deltasae_ray.sae.names import AUTO_FLOOR, Architecture
from deltasae_ray.sae.recipe import Recipe, finite_rows
from deltasae_ray.sae.threads import cores, threads
from deltasae_ray.sae.trainer import Trainer

log = logging.getLogger(__name__)
_PRODUCTS = 0.5e12
"""Floating-point operations of the encoder product that the default number of steps may cost: some 30 s on
two idle cores, also where most latents die and AuxK makes a step three to four times as long
(docs/benchmarks.md)."""


def fit_dictionary(  # noqa: PLR0913 - public: a recipe's settings, by keyword
    x: Float[Tensor, "token d_model"] | np.ndarray,
    d_sae: int | None = None,
    k: int = 8,
    architecture: Architecture = "topk",
    seed: int = 0,
    *,
    steps: int | None = None,
    lr: float = 3e-3,
    batch_tokens: int = 1024,
) -> Dictionary:
    """Fits a dictionary to rows in raw units, using every core. The same arguments give the same dictionary.

    Args:
        d_sae: latents; by default the next power of two above 8 · the effective rank of x, at least 256.
        steps: optimizer steps; by default 20 epochs within 500..1500 steps, fewer where d_model · d_sae is
            large.

    Raises:
        DictionaryError: no matrix, too few rows, constant rows, k > d_sae, an architecture that cannot be
            trained here.
        PrecisionError: NaN or infinity in more than 0.1 % of the rows; the count is named. Fewer are dropped,
            with a warning.
    """
    rows = _matrix(x)
    finite = finite_rows(rows)
    if not bool(finite.all()):
        log.warning("%d of %d rows hold NaN or infinity and are left out", int((~finite).sum()), len(rows))
        rows = rows[finite]
    with threads(max(cores(), torch.get_num_threads())):
        size = d_sae if d_sae is not None else auto_size(effective_rank(rows))
        chosen = steps if steps is not None else default_steps(len(rows), rows.shape[1], size, batch_tokens)
        trainer = Trainer(
            rows, Recipe(size, k, architecture, lr=lr, batch_tokens=batch_tokens, steps=chosen), seed
        )
        while not trainer.done:
            trainer.step()
        return trainer.finish()


def default_steps(rows: int, d_model: int, d_sae: int, batch_tokens: int) -> int:
    """20 epochs, at most what _PRODUCTS allows, within 500..1500."""
    affordable = _PRODUCTS / (2 * batch_tokens * d_model * d_sae)
    return int(min(1500, max(500, min(20 * rows / batch_tokens, affordable))))


def effective_rank(x: Float[Tensor, "token d_model"], chunk: int = 65_536) -> float:
    """exp H(λ/Σλ), λ the eigenvalues of the covariance of x, in fp64."""
    mean = torch.stack([rows.double().sum(dim=0) for rows in x.split(chunk)]).sum(dim=0) / len(x)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for rows in x.split(chunk):
        centred = rows.double() - mean
        covariance += centred.T @ centred
    return effective_number(torch.linalg.eigvalsh(covariance).clamp_min(0))


def auto_size(rank: float) -> int:
    """The next power of two above 8 · rank, at least AUTO_FLOOR."""
    return max(AUTO_FLOOR, 1 << int(8 * rank).bit_length())


def _matrix(x: Float[Tensor, "token d_model"] | np.ndarray) -> Float[Tensor, "token d_model"]:
    if not isinstance(x, (Tensor, np.ndarray)) or x.ndim != 2:
        raise DictionaryError(
            f"x is {type(x).__name__} of shape {getattr(x, 'shape', None)}: a matrix [token, d_model] is"
            " needed"
        )
    return torch.as_tensor(
        np.ascontiguousarray(x, dtype=np.float32)
        if isinstance(x, np.ndarray)
        else x.detach().to("cpu", torch.float32)
    )
