"""The blockwise head loss against autograd through all logits."""

import pytest
import torch
from torch import Tensor, nn

from deltasae_ray.adapt.head_loss import head_cross_entropy
from deltasae_ray.models.behaviour import LanguageHead

N, D, VOCAB = 40, 16, 1000


def world(*, bias: bool = False) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(D, VOCAB, bias=bias).requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_(generator=generator)
    hidden = torch.randn(N, D, generator=generator)
    return head, hidden.requires_grad_(), torch.randint(VOCAB, (N,), generator=generator)


def exact(head: LanguageHead, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = head.module(hidden) * head.scale
    if head.softcap is not None:
        logits = (logits / head.softcap).tanh() * head.softcap
    loss = nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
    return loss, torch.autograd.grad(loss, hidden)[0]


@pytest.mark.parametrize(
    ("softcap", "scale", "bias"), [(None, 1.0, False), (4.0, 1.0, False), (None, 0.3, True), (2.0, 0.5, True)]
)
def test_loss_and_gradient_equal_autograd_through_all_logits(
    softcap: float | None, scale: float, bias: bool
) -> None:
    module, hidden, labels = world(bias=bias)
    head = LanguageHead(module, softcap, scale)
    wanted, wanted_gradient = exact(head, hidden, labels)
    loss = head_cross_entropy(hidden, labels, head, negligible=0)
    (gradient,) = torch.autograd.grad(3 * loss, hidden)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (gradient - 3 * wanted_gradient).norm() < 1e-5 * (3 * wanted_gradient).norm()


def test_leaving_out_negligible_tokens_moves_the_gradient_little_and_the_loss_not_at_all() -> None:
    module, hidden, labels = world()
    head = LanguageHead(module, None, 1.0)
    whole = head_cross_entropy(hidden, labels, head, negligible=0)
    (wanted,) = torch.autograd.grad(whole, hidden)
    cut = head_cross_entropy(hidden, labels, head, negligible=1e-3)
    (gradient,) = torch.autograd.grad(cut, hidden)
    assert cut.item() == whole.item()
    assert 0 < (gradient - wanted).norm() < 0.02 * wanted.norm()
