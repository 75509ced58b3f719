"""A bf16 product may only name candidates: the codes are those of fp32, also where bf16 cannot tell latents
apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.sae import kernels, screening
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from tests.sae.planted import planted


def world(
    twins: float, tokens: int = 200, d_model: int = 64, d_sae: int = 1024
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, encoder, b_enc, b_dec): sparse rows; every 64 encoder rows differ from each other by about
    `twins`."""
    g = torch.Generator().manual_seed(0)
    families = torch.randn(d_sae // 64, d_model, generator=g).repeat_interleave(64, dim=0)
    encoder = F.normalize(families + twins * torch.randn(d_sae, d_model, generator=g), dim=1)
    x = (
        torch.rand(tokens, 6, 1, generator=g)
        .mul(encoder[torch.randint(0, d_sae, (tokens, 6), generator=g)])
        .sum(dim=1)
    )
    return x, encoder, 1e-3 * torch.randn(d_sae, generator=g), 0.1 * torch.randn(d_model, generator=g)


@pytest.mark.parametrize(
    "twins", [1.0, 1e-3, 0.0], ids=["far apart", "nearer than bf16 tells", "equal but for the bias"]
)
@pytest.mark.parametrize("how", ["topk", "batch_topk"])
def test_the_codes_are_those_of_fp32(how: str, twins: float) -> None:
    x, *encoder = world(twins)
    values, chosen = getattr(screening, how)(x, *encoder, 8)
    expected, among = getattr(kernels, how)(kernels.preactivations(x, *encoder), 8)
    ours, theirs = (
        torch.zeros(200 * 1024).scatter_(0, places(a, 1024), v)
        for v, a in ((values, chosen), (expected, among))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(chosen.starts, among.starts) and torch.equal(chosen.latent_starts, among.latent_starts)


def places(chosen: kernels.Active, d_sae: int) -> Tensor:
    tokens = torch.repeat_interleave(torch.arange(len(chosen.starts) - 1), chosen.starts.diff())
    return tokens * d_sae + chosen.latents


@pytest.mark.parametrize("shift", [0.0, -1.5, -9.0], ids=["half are negative", "few are positive", "none is"])
def test_candidates_are_the_largest_of_each_row_as_far_as_they_are_positive(shift: float) -> None:
    pre = (torch.randn(300, 2048, generator=torch.Generator().manual_seed(0)) + shift).bfloat16()
    found = screening._candidates(pre.view(torch.int16), 40)
    assert all(len(row.unique()) == 40 for row in found)
    ours, expected = pre.gather(1, found).sort(descending=True).values, pre.topk(40).values
    assert torch.equal(ours.clamp_min(0), expected.clamp_min(0))


def test_most_tokens_need_no_fp32_product_and_twins_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    clear = screening._clear
    monkeypatch.setattr(screening, "_clear", lambda *args: seen.append(clear(*args)) or seen[-1])
    for twins in (1.0, 1e-3):
        x, *encoder = world(twins)
        screening.topk(x, *encoder, 8)
    assert seen[0].float().mean() > 0.8 and seen[1].float().mean() < 0.5


def test_rows_that_are_not_finite_are_never_clear() -> None:
    rough, exact = torch.zeros(2, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 3.0, 4.0]])
    assert screening._clear(torch.tensor([1e9, 1e9]), rough, exact).tolist() == [True, False]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_screened_run_learns_what_an_fp32_one_does_and_resumes_without_a_trace(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = planted(0, rows=1000).x
    recipe = Recipe(4096, 4, architecture, batch_tokens=128, steps=16, dead_tokens=300)  # type: ignore[arg-type]

    def run(trainer: Trainer, steps: int) -> Trainer:
        for _ in range(steps):
            trainer.step()
        return trainer

    monkeypatch.setattr(screening, "_fast_bf16", lambda: False)
    plain = run(Trainer(x, recipe, seed=0), 16)
    monkeypatch.setattr(screening, "_fast_bf16", lambda: True)
    monkeypatch.setattr(kernels, "topk", lambda *_: pytest.fail("not screened"))
    screened = run(Trainer(x, recipe, seed=0), 16)
    resumed = Trainer(x, recipe, seed=0)
    resumed.load_state_dict(run(Trainer(x, recipe, seed=0), 7).state_dict())
    run(resumed, 9)
    assert all(torch.equal(a, b) for a, b in zip(screened.weights, resumed.weights, strict=True))
    assert screened.curve[-1]["fvu"] == pytest.approx(plain.curve[-1]["fvu"], rel=1e-3)
    assert not torch.equal(
        screened.weights.encoder, plain.weights.encoder
    )  # the values are summed in another order


def test_small_dictionaries_and_machines_without_matrix_units_keep_to_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screening, "_fast_bf16", lambda: True)
    assert screening.pays(torch.empty(4096, 640), 32)
    assert not screening.pays(torch.empty(512, 640), 8) and not screening.pays(torch.empty(4096, 640), 256)
    monkeypatch.setattr(screening, "_fast_bf16", lambda: False)
    assert not screening.pays(torch.empty(4096, 640), 32)
