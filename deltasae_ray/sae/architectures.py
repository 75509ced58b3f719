"""What the architectures do differently in training: which latents are active, and what besides the error
they pay for.

| architecture | active latents of a token | after training it is |
|---|---|---|
| `topk` | the k largest (Gao et al. 2024) | the same |
| `batchtopk` | the k · tokens largest of a batch (Bussmann et al. 2024) | jumprelu, one threshold for all |
| `matryoshka_batchtopk` | likewise; prefixes reconstruct alone (Bussmann et al. 2025) | jumprelu, likewise |
| `jumprelu` | those above a learned threshold each, k on average (Rajamanoharan et al. 2024) | the same |
| `standard` | those above 0; an L1 penalty, by default as strong as makes k fire on average | the same |

The first three go the sparse path of `kernels`; the others need every pre-activation's gradient and are
dense.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.sae import kernels, screening
from deltasae_ray.sae.peers import Peers


class Weights(NamedTuple):
    """In scaled units; rows of both matrices are latents. Dictionaries that are trained together are stacked
    along the first dimension."""

    encoder: Float[Tensor, "*stack d_sae d_model"]
    decoder: Float[Tensor, "*stack d_sae d_model"]
    b_enc: Float[Tensor, "*stack d_sae"]
    b_dec: Float[Tensor, "*stack d_model"]
    log_threshold: Float[Tensor, "*stack d_sae"]
    """jumprelu only; elsewhere it has no entries."""


class Forward(NamedTuple):
    """One batch, forwards."""

    missed: Float[Tensor, "*stack"]
    """Σ‖y − ŷ‖², differentiable; for Matryoshka its mean over the prefixes."""
    error: Float[Tensor, "*stack token d_model"]
    """y − ŷ with all latents, without gradient."""
    fired: Int[Tensor, " entry"]
    """Latents that fired, one entry a token; those of a stack are counted on from member to member."""
    price: Float[Tensor, ""]
    """What is penalised, summed over tokens: L1 of the codes (standard), their number (jumprelu), 0
    elsewhere; differentiable."""


Active = tuple[Float[Tensor, " entry"], kernels.Active]
"""The active pre-activations, and which they are."""


@torch.no_grad()
def topk(y: Float[Tensor, "*stack token d_model"], w: Weights, k: int) -> Active:
    """The k largest pre-activations of each token, without gradient."""
    encoder = w.encoder, w.b_enc, w.b_dec
    if y.ndim == 2 and screening.pays(w.encoder, k):
        return screening.topk(y, *encoder, k)
    return kernels.topk(kernels.preactivations(y, *encoder), k)


@torch.no_grad()
def batch_topk(y: Float[Tensor, "*stack token d_model"], w: Weights, k: int) -> Active:
    """The k · tokens largest pre-activations of a batch, without gradient."""
    encoder = w.encoder, w.b_enc, w.b_dec
    if y.ndim == 2 and screening.pays(w.encoder, k):
        return screening.batch_topk(y, *encoder, k)
    return kernels.batch_topk(kernels.preactivations(y, *encoder), k)


SELECTING = {"topk": topk, "batchtopk": batch_topk, "matryoshka_batchtopk": batch_topk}
"""Architecture that chooses which latents are active, and so goes the sparse path → how it chooses."""
THRESHOLD_ON_FREEZING = ("batchtopk", "matryoshka_batchtopk")
"""Architectures that choose over a batch: to encode a token alone they need a threshold, found after
training."""


@torch.no_grad()
def select_among_peers(
    y: Float[Tensor, "token d_model"], w: Weights, k: int, peers: Peers, batch: int
) -> Active:
    """The process' part of the k · batch largest pre-activations of a batch that peers share, as if one
    process had it whole.

    Args:
        batch: tokens of all peers.
    """
    wanted, d_sae = k * batch, w.encoder.shape[0]
    values, chosen = batch_topk(y, w, min(d_sae, -(-wanted // len(y))))  # all that can be among them
    best = values.topk(min(wanted, len(values)), sorted=False).values
    everyones = values.new_zeros(peers.world, wanted)
    everyones[peers.rank, : len(best)] = best
    peers.sum(everyones)
    limit = (
        everyones.flatten().topk(wanted, sorted=False).values.min().clamp_min(torch.finfo(values.dtype).tiny)
    )
    won = values >= limit
    tokens = torch.repeat_interleave(
        torch.arange(len(y), device=y.device), chosen.starts.diff(), output_size=len(values)
    )
    counts = torch.bincount(tokens[won], minlength=len(y))
    return values[won], kernels.active(chosen.latents[won], counts, d_sae)


def sparse_forward(
    y: Float[Tensor, "*stack token d_model"],
    w: Weights,
    architecture: str,
    k: int,
    peers: Peers | None = None,
    batch: int = 0,
) -> Forward:
    """The forward pass of a SELECTING architecture.

    Args:
        peers: who shares a batch of `batch` tokens, of which `y` is this process' part.
    """
    if peers is not None and peers.world > 1 and architecture in THRESHOLD_ON_FREEZING:
        values, chosen = select_among_peers(y, w, k, peers, batch)
    else:
        values, chosen = SELECTING[architecture](y, w, k)
    codes = kernels.encode(y, w.encoder, w.b_enc, w.b_dec, values, chosen)
    d_sae = w.decoder.shape[-2]
    widths = prefixes(d_sae, k) if architecture == "matryoshka_batchtopk" else (d_sae,)
    missed, error = y.new_zeros(y.shape[:-2]), y
    for width in widths:
        part = codes if width == d_sae else codes * (chosen.latents % d_sae < width)
        error = y - w.b_dec.unsqueeze(-2) - kernels.decode(part, w.decoder, chosen)
        missed = missed + error.square().sum(dim=(-2, -1)) / len(widths)
    return Forward(missed, error.detach(), chosen.latents[values > 0], y.new_zeros(()))


def dense_forward(
    y: Float[Tensor, "token d_model"], w: Weights, architecture: str, bandwidth: float
) -> Forward:
    """The forward pass of `standard` and `jumprelu`, through autograd.

    Args:
        bandwidth: width of the window around a threshold through which it gets its gradient; jumprelu only.
    """
    pre = kernels.preactivations(y, w.encoder, w.b_enc, w.b_dec)
    if architecture == "jumprelu":
        codes, fires = _JumpReLU.apply(pre, w.log_threshold, bandwidth)
        price = fires.sum()
    else:
        codes = pre.relu()
        price = codes.sum()
    error = y - w.b_dec - codes @ w.decoder
    return Forward(error.square().sum(), error.detach(), (codes > 0).nonzero()[:, 1], price)


def missed_by_dead(
    y: Float[Tensor, "token d_model"],
    w: Weights,
    dead: Int[Tensor, " dead"],
    left: Float[Tensor, "token d_model"],
) -> Float[Tensor, ""]:
    """Σ‖left − ŷ‖², ŷ by the strongest dead latents of each token, d_model / 2 of them at most (Gao et al.
    2024, appendix A.2).

    Dense: of so many latents a token, the sparse path's passes cost three to five times as much
    (docs/benchmarks.md).
    """
    encoder, b_enc = w.encoder.index_select(0, dead), w.b_enc.index_select(0, dead)
    pre = kernels.preactivations(y, encoder, b_enc, w.b_dec)
    width, codes = max(1, min(y.shape[1] // 2, len(dead))), pre.relu()
    if width < len(dead):
        strongest = pre.detach().topk(width, dim=1, sorted=False).indices
        codes = codes * torch.zeros_like(codes).scatter_(1, strongest, 1.0)
    return (left - codes @ w.decoder.index_select(0, dead)).square().sum()


def prefixes(d_sae: int, k: int) -> tuple[int, ...]:
    """Matryoshka's nested dictionaries: all latents, half of them and so on, down to a sixteenth; none
    smaller than 2 k."""
    return tuple(width for width in (d_sae >> s for s in (4, 3, 2, 1)) if width >= 2 * k) + (d_sae,)


class _JumpReLU(torch.autograd.Function):
    """(pre where it exceeds the threshold else 0, whether it does), with the straight-through gradients of
    Rajamanoharan et al. 2024."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, log_threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        threshold = log_threshold.exp()
        fires = pre > threshold
        ctx.save_for_backward(pre, threshold, fires)
        ctx.bandwidth = bandwidth
        return pre * fires, fires.to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold, fires = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        by_threshold = -((threshold * grads[0] + grads[1]) * near).sum(dim=0) / ctx.bandwidth
        return grads[0] * fires, by_threshold * threshold, None
