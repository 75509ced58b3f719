"""The weights that a dictionary starts from."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.sae.architectures import Weights
from deltasae_ray.sae.recipe import Recipe, Scaling

DOMINANT = 0.1
"""Share of the variance from which a direction is given to the dictionary at its start."""


def random_rows(d_sae: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "d_sae d_model"]:
    """Isotropic unit rows."""
    return F.normalize(torch.randn(d_sae, d_model, generator=generator), dim=1)


def start_rows(
    x: Float[Tensor, "token d_model"], scaling: Scaling, d_sae: int, generator: torch.Generator
) -> Float[Tensor, "d_sae d_model"]:
    """Unit rows that decoder and encoder both start from: ± every direction that alone holds DOMINANT of the
    variance, else isotropic.

    Deltas often have a few such directions (a rank-one writer, massive coordinates). Without them as a start
    several latents share each. Measured over two seeds, 500 steps:

    | world | start | mean max-cosine of the atoms | dead of 512 | held-out FVU |
    |---|---|---|---|---|
    | 400 atoms + 3 massive coordinates | isotropic | .765 .737 | 28 58 | .0593 .0625 |
    | | dominant | .814 .785 | 19 34 | .0593 .0574 |
    | rank-one writer, k 8 (|cos| of the top latent) | isotropic | .983–.992 | | |
    | | dominant | .991–.996 | | |
    | 400 atoms, no dominant direction | isotropic = dominant | .712 .724 | 10 32 | .169 .176 |
    | | all principal directions up to the effective rank | .657 .673 | 47 51 | .167 .158 |
    | | rows drawn from N(0, covariance) | .590 .582 | 0 0 | .279 .280 |

    Starting on all principal directions lowers FVU a little and finds fewer of the true atoms, so it is not
    done.
    """
    rows = random_rows(d_sae, x.shape[1], generator)
    sample = (x[:: -(-len(x) // 8_192)].to("cpu", torch.float32) - scaling.mean.cpu()).double()
    basis = torch.randn(min(16, *sample.shape), x.shape[1], generator=generator, dtype=torch.float64).T
    for _ in range(12):  # subspace iteration: only directions far above the rest are wanted
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    _, strength, turned = torch.linalg.svd(sample @ basis, full_matrices=False)
    share = strength.square() / sample.square().sum()
    start = (basis @ turned.T).T[share >= DOMINANT].float()
    signed = torch.stack([start, -start], dim=1).flatten(0, 1)[:d_sae]
    rows[: len(signed)] = signed
    return rows


def first_weights(
    x: Float[Tensor, "token d_model"], recipe: Recipe, scaling: Scaling, seed: int, device: torch.device
) -> Weights:
    """Makes the weights that training starts from. Encoder rows start as decoder rows: a latent then fires on
    what it writes, and few are born dead."""
    d_sae, d_model, generator = recipe.d_sae, x.shape[1], torch.Generator().manual_seed(seed)
    rows = (
        start_rows(x, scaling, d_sae, generator)
        if recipe.train_decoder
        else random_rows(d_sae, d_model, generator)
    ).to(device)
    return Weights(
        encoder=rows.clone(),
        decoder=rows.clone(),
        b_enc=torch.zeros(d_sae, device=device),
        b_dec=torch.zeros(d_model, device=device),
        log_threshold=torch.zeros(d_sae if recipe.architecture == "jumprelu" else 0, device=device),
    )
