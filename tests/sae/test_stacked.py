"""Dictionaries that train together end as each would have alone, and part at any step."""

from typing import Any

import pytest
import torch

from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.stacked import at_once, together, train_together
from deltasae_ray.sae.trainer import Trainer
from tests.sae.planted import planted

SELECTING = ("topk", "batchtopk", "matryoshka_batchtopk")
# Dead latents, an epoch's end and the decay are all passed.
RECIPE = Recipe(96, 4, batch_tokens=128, steps=80, dead_tokens=300)


def members(architecture: Any = "topk", device: str = "cpu") -> list[Trainer]:
    """Three with rows and seeds of their own; the third has as many dead latents from the start as it can
    use."""
    recipe = Recipe(96, 4, architecture, batch_tokens=128, steps=80, dead_tokens=300)
    made = [
        Trainer(planted(i, rows=700 + 37 * i, d_model=64).x, recipe, seed=i, device=device) for i in range(3)
    ]
    with torch.no_grad():
        made[2].weights.encoder[40:] *= 0.01
    return made


def to_the_end(trainers: list[Trainer]) -> list[Trainer]:
    for t in trainers:
        while not t.done:
            t.step()
    return trainers


def assert_same(one: Trainer, other: Trainer, atol: float = 0.0) -> None:
    a, b = one.state_dict(), other.state_dict()
    for name, tensor in a["tensors"].items():
        torch.testing.assert_close(tensor, b["tensors"][name], rtol=0, atol=atol, msg=name)
    assert {k: v for k, v in a.items() if k not in ("tensors", "curve")} == {
        k: v for k, v in b.items() if k not in ("tensors", "curve")
    }
    for here, there in zip(a["curve"], b["curve"], strict=True):
        assert here == pytest.approx(there, abs=atol)


@pytest.mark.parametrize("architecture", SELECTING)
def test_stacked_training_ends_with_the_bits_of_training_alone(architecture: str) -> None:
    alone, stacked = to_the_end(members(architecture)), members(architecture)
    assert train_together(stacked, 80) == [None] * 3
    for one, other in zip(alone, stacked, strict=True):
        assert_same(one, other)
    assert len({max(point["dead"] for point in t.curve) for t in alone}) > 1, "all have as many dead latents"


def test_a_stack_parts_and_meets_again_at_any_step_and_its_checkpoints_are_the_members() -> None:
    alone, stacked = to_the_end(members()), members()
    train_together(stacked, 17)
    stacked[1].step()
    for t in (stacked[0], stacked[2]):
        t.step()
    resumed = members()
    for fresh, t in zip(resumed, stacked, strict=True):
        fresh.load_state_dict(t.state_dict())
    train_together(resumed[:2], 30)
    to_the_end(resumed)
    for one, other in zip(alone, resumed, strict=True):
        assert_same(one, other)
        assert torch.equal(one.finish().W_dec, other.finish().W_dec)


def test_members_share_no_memory_with_another_and_only_views_of_the_stack() -> None:
    stacked = members()
    train_together(stacked, 3)
    before = stacked[1].state_dict()["tensors"]
    stacked[0].step()
    assert all(
        torch.equal(before[name], tensor) for name, tensor in stacked[1].state_dict()["tensors"].items()
    )


def test_a_member_that_runs_off_is_named_and_the_others_are_unharmed() -> None:
    alone, stacked = to_the_end(members()[:2]), members()
    with torch.no_grad():
        stacked[2].weights.encoder.fill_(float("inf"))
    errors = train_together(stacked, 80)
    assert errors[:2] == [None, None] and "step 2" in str(errors[2])
    for one, other in zip(alone, stacked[:2], strict=True):
        assert_same(one, other)


def test_only_trainers_of_one_recipe_batch_and_width_are_stacked() -> None:
    x = planted(0, rows=300, d_model=64).x
    first = Trainer(x, RECIPE, 0)
    assert together(first, Trainer(x[:200], RECIPE, 1))
    for other in (
        Trainer(x, Recipe(64, 4, batch_tokens=128, steps=80), 0),
        Trainer(x[:100], RECIPE, 0),
        Trainer(x[:, :32], RECIPE, 0),
    ):
        assert not together(first, other)
    dense = [Trainer(x, Recipe(96, 4, "standard", batch_tokens=128, steps=80), seed) for seed in (0, 1)]
    assert not together(*dense)


def test_a_cpu_stacks_what_is_small_and_what_has_a_sparse_path() -> None:
    assert at_once(RECIPE, 64, "cpu") > 1
    assert at_once(Recipe(512, 8, batch_tokens=1024), 640, "cpu") == 1
    assert at_once(Recipe(4096, 32, batch_tokens=2048), 640, "cpu") == 1
    assert at_once(Recipe(96, 4, "jumprelu", batch_tokens=128), 64, "cpu") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", SELECTING)
def test_a_gpu_stacks_and_comes_to_what_the_cpu_comes_to(architecture: str) -> None:
    assert at_once(Recipe(16_384, 32, batch_tokens=2048), 2304, "cuda") > 1
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        on_cpu, on_gpu = members(architecture), members(architecture, "cuda")
        for some in (on_cpu, on_gpu):
            assert train_together(some, 3) == [None] * 3
        for one, other in zip(on_cpu, on_gpu, strict=True):
            torch.testing.assert_close(one.weights.decoder, other.weights.decoder.cpu(), rtol=0, atol=1e-3)
        train_together(on_gpu, 80)
        assert all(t.done and t.finish().W_dec.isfinite().all() for t in on_gpu)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
