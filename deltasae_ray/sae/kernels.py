"""The sparse path of TopK and BatchTopK: nothing but the encoder product costs more than a share of what it
costs densely.

Stock torch operations only, measured against their alternatives (batch 2048, d_model 640, d_sae 4096, k 32,
two cores): decoding by `embedding_bag` 2.5 ms against 68 dense; both weight gradients by `embedding_bag` over
the transposed pattern 10 ms against 65 dense; gradients of the active codes by `sampled_addmm` 7 ms against
70 dense and 132 by gathering rows. No copy of batch × k × d_model is ever made.

Dictionaries of one shape may come stacked: rows [stack, token, d_model] and weights [stack, d_sae, d_model].
They are then one dictionary of stack · d_sae latents, the first member's first, of which each of stack ·
token rows is offered its own member's only. Sums that a batched operation would round otherwise are taken
member by member, so that each comes out as if it were alone.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Active(NamedTuple):
    """Which latents are active on which token, by token and by latent. Tokens may have different numbers of
    them.

    The same for a forward pass and its gradients.
    """

    latents: Int[Tensor, " entry"]
    """Latents of the first token, then those of the second, and so on."""
    starts: Int[Tensor, " token+1"]
    """Where in `latents` each token begins; last, their number."""
    order: Int[Tensor, " entry"]
    """Entries sorted by latent; equal latents stay in the order of tokens, so sums are repeatable."""
    tokens: Int[Tensor, " entry"]
    """Token of each entry, in the order `order`."""
    latent_starts: Int[Tensor, " d_sae"]
    """Where in `order` the entries of each latent begin."""


def active(latents: Int[Tensor, " entry"], counts: Int[Tensor, " token"] | int, d_sae: int) -> Active:
    """Adds the by-latent view that the weight gradients need.

    Args:
        latents: token by token.
        counts: entries of each token; one number where all have as many.
    """
    device = latents.device
    order = torch.argsort(latents, stable=True)
    if isinstance(counts, int):
        starts = torch.arange(0, len(latents) + 1, counts, device=device)
        tokens = order // counts
    else:
        starts = F.pad(counts.cumsum(0), (1, 0))
        tokens = torch.repeat_interleave(
            torch.arange(len(counts), device=device), counts, output_size=len(latents)
        )[order]
    by_latent = torch.bincount(latents, minlength=d_sae)
    return Active(latents, starts, order, tokens, by_latent.cumsum(0) - by_latent)


def topk(pre: Float[Tensor, "*stack token d_sae"], k: int) -> tuple[Float[Tensor, " entry"], Active]:
    """The k largest pre-activations of every token, and where they are."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    latents = indices.reshape(-1, pre.shape[-2] * k) + first_latents(
        pre.shape[:-2].numel(), pre.shape[-1], pre.device
    )
    return values.reshape(-1), active(latents.reshape(-1), k, pre.shape[:-2].numel() * pre.shape[-1])


def batch_topk(pre: Float[Tensor, "*stack token d_sae"], k: int) -> tuple[Float[Tensor, " entry"], Active]:
    """The k · tokens largest pre-activations of the whole batch, at most: only positive ones (Bussmann et al.
    2024)."""
    tokens, d_sae = pre.shape[-2:]
    members = pre.reshape(-1, tokens, d_sae)
    places = torch.cat([largest(member, k * tokens) + i * tokens * d_sae for i, member in enumerate(members)])
    values = pre.reshape(-1)[places]
    places, values = places[values > 0], values[values > 0]
    rows = places // d_sae
    latents = places % d_sae + rows // tokens * d_sae
    return values, active(
        latents, torch.bincount(rows, minlength=len(members) * tokens), len(members) * d_sae
    )


def first_latents(stack: int, d_sae: int, device: torch.device) -> Int[Tensor, "stack 1"]:
    """The first latent of each member, in the one dictionary that a stack is."""
    return torch.arange(0, stack * d_sae, d_sae, device=device)[:, None]


def largest(pre: Float[Tensor, "token d_sae"], wanted: int) -> Int[Tensor, " entry"]:
    """Where the `wanted` largest of all stand in `pre` flattened, ascending.

    Each is among those with which it shares a maximum, and the `wanted` largest maxima cover all: so most are
    never sorted (33 ms against 245 for sorting token by token first; batch 2048, d_sae 4096, k 32, one core).
    """
    tokens, d_sae = pre.shape
    most = pre
    while most.shape[1] % 2 == 0 and most.numel() > 16 * wanted:
        most = torch.maximum(*most.chunk(2, dim=1))
    width = most.shape[1]
    best = most.reshape(-1).topk(wanted, sorted=False).indices
    first = best // width * d_sae + best % width
    places = (first[:, None] + torch.arange(0, d_sae, width, device=pre.device)).reshape(-1)
    return places[pre.reshape(-1)[places].topk(wanted, sorted=False).indices].sort().values


def encoder_bias(
    encoder: Float[Tensor, "*stack d_sae d_model"],
    b_enc: Float[Tensor, "*stack d_sae"],
    b_dec: Float[Tensor, "*stack d_model"],
) -> Float[Tensor, "*stack d_sae"]:
    """What is added to x · encoderᵀ: b_enc, and what subtracting b_dec from x comes to."""
    if encoder.ndim == 3:
        return torch.stack([encoder_bias(*member) for member in zip(encoder, b_enc, b_dec, strict=True)])
    return torch.addmv(b_enc, encoder, b_dec, alpha=-1)


def preactivations(
    x: Float[Tensor, "*stack token d_model"],
    encoder: Float[Tensor, "*stack d_sae d_model"],
    b_enc: Float[Tensor, "*stack d_sae"],
    b_dec: Float[Tensor, "*stack d_model"],
) -> Float[Tensor, "*stack token d_sae"]:
    """(x − b_dec) · encoderᵀ + b_enc as one product; the limit of a training step. Encoder rows are
    latents."""
    bias = encoder_bias(encoder, b_enc, b_dec)
    if encoder.ndim == 3:
        return torch.baddbmm(bias[:, None, :], x, encoder.mT)
    return torch.addmm(bias, x, encoder.T)


def encode(
    x: Float[Tensor, "*stack token d_model"],
    encoder: Float[Tensor, "*stack d_sae d_model"],
    b_enc: Float[Tensor, "*stack d_sae"],
    b_dec: Float[Tensor, "*stack d_model"],
    pre: Float[Tensor, " entry"],
    chosen: Active,
) -> Float[Tensor, " entry"]:
    """ReLU of the chosen pre-activations, differentiable in encoder, b_enc and b_dec (not in x).

    Args:
        pre: the pre-activations at `chosen.latents`, already computed without gradients.
    """
    return _Encode.apply(x.flatten(0, -2), encoder.flatten(0, -2), b_enc.flatten(), b_dec, pre, chosen)


def decode(
    codes: Float[Tensor, " entry"], decoder: Float[Tensor, "*stack d_sae d_model"], chosen: Active
) -> Float[Tensor, "*stack token d_model"]:
    """Σ_j codes_j · decoder[latents_j] of every token, without b_dec, differentiable in codes and decoder."""
    rows = _Decode.apply(codes, decoder.flatten(0, -2), chosen)
    return rows.reshape(*decoder.shape[:-2], -1, decoder.shape[-1])


def _by_latent(
    codes: Float[Tensor, " entry"], rows: Float[Tensor, "token d_model"], chosen: Active
) -> Float[Tensor, "d_sae d_model"]:
    """codesᵀ · rows with codes seen as a sparse [token, d_sae] matrix: the gradient of a weight whose rows
    are latents."""
    return F.embedding_bag(
        chosen.tokens, rows, chosen.latent_starts, per_sample_weights=codes[chosen.order], mode="sum"
    )


def at_entries(
    rows: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "d_sae d_model"],
    latents: Int[Tensor, " entry"],
    starts: Int[Tensor, " token+1"],
) -> Float[Tensor, " entry"]:
    """(rows · weightᵀ) at some entries only; `latents` and `starts` as in `Active`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            starts,
            latents,
            rows.new_zeros(len(latents)),
            (len(rows), weight.shape[0]),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, rows, weight.T, beta=0.0).values()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(  # b_enc gets its gradient in backward  # noqa: PLR0913 - autograd passes them one by one
        ctx: Any,
        x: Tensor,
        encoder: Tensor,
        b_enc: Tensor,  # noqa: ARG004
        b_dec: Tensor,
        pre: Tensor,
        chosen: Active,
    ) -> Tensor:
        codes = pre.relu()
        ctx.save_for_backward(x, encoder, b_dec, codes)
        ctx.chosen = chosen
        return codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, b_dec, codes = ctx.saved_tensors
        grad = grads[0] * (codes > 0)
        bias = torch.zeros(encoder.shape[0], dtype=grad.dtype, device=grad.device)
        bias.index_add_(0, ctx.chosen.latents, grad)
        # Σ grad · (x − b_dec) over tokens, without a second copy of the batch: the bias gradient already
        # holds Σ grad.
        weight, members = _by_latent(grad, x, ctx.chosen), b_dec.reshape(-1, b_dec.shape[-1])
        parts = [part.chunk(len(members)) for part in (weight, bias, encoder)]
        for rows, total, own in zip(*parts[:2], members, strict=True):
            rows.addr_(total, own, alpha=-1)
        centre = torch.stack([total @ rows for total, rows in zip(*parts[1:], strict=True)])
        return None, weight, bias, -centre.view_as(b_dec), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, decoder: Tensor, chosen: Active) -> Tensor:
        ctx.save_for_backward(codes, decoder)
        ctx.chosen = chosen
        return F.embedding_bag(
            chosen.latents, decoder, chosen.starts[:-1], per_sample_weights=codes, mode="sum"
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, decoder = ctx.saved_tensors
        grad = grads[0].contiguous()
        return (
            at_entries(grad, decoder, ctx.chosen.latents, ctx.chosen.starts),
            _by_latent(codes, grad, ctx.chosen),
            None,
        )
