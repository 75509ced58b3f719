"""The sparse path must give the gradients of the dense one."""

import pytest
import torch
from torch import Tensor

from deltasae_ray.sae import kernels, screening


def weights(seed: int, d_sae: int = 96, d_model: int = 24) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(d_sae, d_model), (d_sae, d_model), (d_sae,), (d_model,)]
    return [torch.randn(shape, generator=g).div_(5).requires_grad_() for shape in shapes]


CHOICES = ["topk", "batchtopk"]
SCREENED = {"topk": screening.topk, "batchtopk": screening.batch_topk}


def dense_loss(
    x: Tensor,
    encoder: Tensor,
    decoder: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    k: int,
    how: str,
    among: Tensor | None,
) -> Tensor:
    """As one writes it first: dense codes, autograd."""
    pre = (x - b_dec) @ encoder.T + b_enc
    seen = pre if among is None else torch.full_like(pre, -torch.inf).index_copy(1, among, pre[:, among])
    kept = seen.topk(k, dim=1).values[:, -1:] if how == "topk" else seen.flatten().topk(k * len(x)).values[-1]
    z = (pre * (seen >= kept)).relu()
    return (x - b_dec - z @ decoder).square().mean()


def sparse_loss(
    x: Tensor,
    encoder: Tensor,
    decoder: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    k: int,
    how: str,
    among: Tensor | None,
    screen: bool = False,
) -> Tensor:
    pre = kernels.preactivations(x, encoder, b_enc, b_dec).detach()
    choose = kernels.topk if how == "topk" else kernels.batch_topk
    with torch.no_grad():
        values, chosen = (
            SCREENED[how](x, encoder, b_enc, b_dec, k)
            if screen
            else choose(pre if among is None else pre[:, among], k)
        )
    if among is not None:
        counts = chosen.starts.diff()
        chosen = kernels.active(among[chosen.latents], counts, len(encoder))
    codes = kernels.encode(x, encoder, b_enc, b_dec, values, chosen)
    return (x - b_dec - kernels.decode(codes, decoder, chosen)).square().mean()


@pytest.mark.parametrize(
    ("among", "screen"),
    [(None, False), (None, True), (torch.tensor([3, 90, 41, 7, 55, 56, 20, 0, 33]), False)],
    ids=["all latents", "all latents, screened", "dead latents of AuxK"],
)
@pytest.mark.parametrize("how", CHOICES)
@pytest.mark.parametrize("k", [1, 5, 9])
def test_gradients_of_the_sparse_path_equal_the_dense_ones(
    k: int, how: str, among: Tensor | None, screen: bool
) -> None:
    x = torch.randn(70, 24, generator=torch.Generator().manual_seed(9))
    sparse, dense = weights(1), weights(1)
    losses = sparse_loss(x, *sparse, k, how, among, screen), dense_loss(x, *dense, k, how, among)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(sparse, dense, strict=True):
        assert theirs.grad.abs().max() > 1e-3
        assert (ours.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm()


@pytest.mark.parametrize("crowded", [False, True], ids=["spread", "all on three tokens"])
def test_batch_topk_chooses_the_largest_of_the_whole_batch(crowded: bool) -> None:
    pre = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    if crowded:  # far more than 4 k winners on one token: the candidates must be widened
        pre[:3] += 10
    values, chosen = kernels.batch_topk(pre, 4)
    expected = pre.flatten().topk(160).indices.sort().values
    token = torch.repeat_interleave(torch.arange(40), chosen.starts.diff())
    assert torch.equal((token * 64 + chosen.latents).sort().values, expected)
    assert torch.equal(pre[token, chosen.latents], values)
    assert int(chosen.starts.diff().max()) > 16 or not crowded


def test_batch_topk_chooses_nothing_that_is_not_positive() -> None:
    pre = -torch.ones(6, 20)
    pre[2, 3] = pre[4, 0] = 1.0
    values, chosen = kernels.batch_topk(pre, 3)
    assert (
        values.tolist() == [1.0, 1.0]
        and chosen.latents.tolist() == [3, 0]
        and chosen.starts.tolist() == [0, 0, 0, 1, 1, 2, 2]
    )


def test_latents_that_never_fire_get_no_gradient() -> None:
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    w = weights(2)
    with torch.no_grad():
        w[2][50:] = -1e6
    sparse_loss(x, *w, 3, "topk", None).backward()
    assert (w[0].grad[50:] == 0).all() and (w[1].grad[50:] == 0).all() and (w[0].grad[:50] != 0).any()


@pytest.mark.parametrize("how", CHOICES)
def test_no_tensor_of_batch_times_k_times_d_model_is_made(how: str) -> None:
    tokens, k, d_model, d_sae = 256, 32, 128, 512
    x = torch.randn(tokens, d_model)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, ARG002
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                largest = max(
                    largest,
                    tensor.numel() if isinstance(tensor, Tensor) and tensor.layout == torch.strided else 0,
                )
            return out

    with Watch():
        sparse_loss(x, *weights(0, d_sae, d_model), k, how, None).backward()
    assert tokens * d_sae <= largest < tokens * k * d_model
