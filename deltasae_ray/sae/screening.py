"""The codes of fp32 from a product in bf16: it names candidates, their values are taken again in fp32, and
the largest of those win.

On a CPU with matrix units (AMX) a bf16 product takes a sixth of an fp32 one, so this costs half of fp32
product and selection (docs/benchmarks.md). The codes are those of fp32: a token whose last winner is not
clear of what the bf16 product may have misjudged gets the fp32 product after all.
"""

from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deltasae_ray.sae import kernels

_SPARE = 4
"""A candidate more for every so many wanted."""
_GROUP = 8
"""Pre-activations that share a maximum; a power of two."""
_ROUNDING = 2.0**-8
"""Rounding of a bf16 result, as a share of it."""


@cache
def _fast_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def pays(encoder: Float[Tensor, "d_sae d_model"], k: int) -> bool:
    """Whether screening is faster here, by machine and shape alone, so that the same seed keeps to the same
    path."""
    d_sae, d_model = encoder.shape
    return encoder.device.type == "cpu" and _fast_bf16() and d_sae >= 32 * k and d_sae * d_model >= 2**20


def topk(
    x: Float[Tensor, "token d_model"],
    encoder: Float[Tensor, "d_sae d_model"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_model"],
    k: int,
) -> tuple[Float[Tensor, " entry"], kernels.Active]:
    """`kernels.topk` of the pre-activations."""
    bias = kernels.encoder_bias(encoder, b_enc, b_dec)
    pre = _rough(x, encoder, bias)
    candidates = _candidates(pre.view(torch.int16), k + max(8, k // _SPARE))
    rough = pre.gather(1, candidates)
    starts = torch.arange(0, candidates.numel() + 1, candidates.shape[1])
    exact = (
        kernels.at_entries(x, encoder, candidates.reshape(-1), starts) + bias[candidates.reshape(-1)]
    ).view_as(candidates)
    values, among = exact.topk(k, dim=1, sorted=False)
    latents = candidates.gather(1, among)
    unsure = ~_clear(values.amin(dim=1), rough.float(), exact)
    if bool(unsure.any()):
        values[unsure], latents[unsure] = torch.addmm(bias, x[unsure], encoder.T).topk(k, dim=1, sorted=False)
    return values.reshape(-1), kernels.active(latents.reshape(-1), k, len(encoder))


def batch_topk(
    x: Float[Tensor, "token d_model"],
    encoder: Float[Tensor, "d_sae d_model"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_model"],
    k: int,
) -> tuple[Float[Tensor, " entry"], kernels.Active]:
    """`kernels.batch_topk` of the pre-activations."""
    bias, wanted, d_sae = kernels.encoder_bias(encoder, b_enc, b_dec), k * len(x), len(encoder)
    pre = _rough(x, encoder, bias)
    places = kernels.largest(pre.view(torch.int16), wanted + wanted // _SPARE)
    latents, counts = places % d_sae, torch.bincount(places // d_sae, minlength=len(x))
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    exact = kernels.at_entries(x, encoder, latents, starts) + bias[latents]
    limit = exact.topk(wanted, sorted=False).values.min().clamp_min(torch.finfo(exact.dtype).tiny)
    if not bool(_clear(limit[None], pre.view(-1)[places][None].float(), exact[None])):
        return kernels.batch_topk(torch.addmm(bias, x, encoder.T), k)
    won = exact >= limit
    counts = torch.bincount((places // d_sae)[won], minlength=len(x))
    return exact[won], kernels.active(latents[won], counts, d_sae)


def _candidates(bits: Int[Tensor, "token d_sae"], wanted: int) -> Int[Tensor, "token candidate"]:
    """Where the `wanted` largest of every row stand, of bf16 numbers seen as integers: these compare faster,
    and in the same order but for negative numbers, which all come last.

    Each of the largest is among those with which it shares a maximum, and the `wanted` largest maxima cover
    all.
    """
    if bits.shape[1] % _GROUP or bits.shape[1] < 4 * _GROUP * wanted:
        return bits.topk(wanted, dim=1, sorted=False).indices
    groups = most = bits.unflatten(1, (_GROUP, -1))
    while most.shape[1] > 1:
        most = torch.maximum(*most.chunk(2, dim=1))
    best = most.squeeze(1).topk(wanted, dim=1, sorted=False).indices
    at = (
        groups.gather(2, best[:, None, :].expand(-1, _GROUP, -1))
        .flatten(1)
        .topk(wanted, dim=1, sorted=False)
        .indices
    )
    return best.gather(1, at % wanted) + at // wanted * groups.shape[2]


def _rough(
    x: Float[Tensor, "token d_model"], encoder: Float[Tensor, "d_sae d_model"], bias: Float[Tensor, " d_sae"]
) -> Float[Tensor, "token d_sae"]:
    return torch.addmm(bias.bfloat16(), x.bfloat16(), encoder.bfloat16().T)


def _clear(
    last: Float[Tensor, " row"], rough: Float[Tensor, "row candidate"], exact: Float[Tensor, "row candidate"]
) -> Bool[Tensor, " row"]:
    """Whether no latent that is not among the candidates can exceed `last`, the weakest winner.

    Their rough values are at most the smallest of the candidates', or negative where that is. What the
    candidates' were off by, beyond the rounding of the result itself, is doubled for those not seen. NaN is
    never clear.
    """
    smallest = rough.amin(dim=1).clamp_min(0)
    off = ((exact - rough).abs() - _ROUNDING * exact.abs()).amax(dim=1).clamp_min(
        0
    ) + _ROUNDING * smallest.abs()
    return last - smallest >= 2 * off
