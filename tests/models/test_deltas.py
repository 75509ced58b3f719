"""Deltas against plain transformers and PEFT, one document at a time."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deltasae_ray.hookpoints import SITES, Hookpoint, at_sites
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import Residuals, deltas, residuals
from deltasae_ray.models.load import blocks, load_model
from deltasae_ray.models.precision import Float64Casts, in_fp64, noise_floor
from tests.tiny import ARCHITECTURES, save_adapter, save_model

HOOKPOINTS = [Hookpoint(0), Hookpoint(2)]


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "gemma2"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder / "model", request.param)
    adapters = {
        f"r{rank}": save_adapter(folder / f"r{rank}", model, request.param, rank=rank, seed=rank)
        for rank in (2, 8)
    }
    return request.param, model, adapters


def ids(contexts: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(3, 250, (contexts, length), generator=torch.Generator().manual_seed(0))


def test_deltas_equal_plain_transformers_and_peft(world: tuple[str, Path, dict[str, Path]]) -> None:
    _, folder, adapters = world
    model = attach(load_model(folder, deepest=2), adapters)
    ours = dict(deltas(model, ids(), HOOKPOINTS, list(adapters)))
    for name, adapter in adapters.items():
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter
        ).eval()
        for row in range(3):
            with torch.no_grad():
                adapted = plain(ids()[row : row + 1], output_hidden_states=True).hidden_states
                with plain.disable_adapter():
                    base = plain(ids()[row : row + 1], output_hidden_states=True).hidden_states
            for h in HOOKPOINTS:
                expected = (adapted[h.hidden_states_index] - base[h.hidden_states_index])[0]
                assert expected.norm() > 0.05 * base[h.hidden_states_index].norm(), (
                    "the adapter must really move this model"
                )
                assert (ours[name][h][row] - expected).norm() <= 1e-5 * expected.norm()
                assert (ours["base"][h][row] - base[h.hidden_states_index][0]).norm() <= 1e-5 * base[
                    h.hidden_states_index
                ].norm()


def test_nothing_after_the_deepest_hookpoint_is_kept(world: tuple[str, Path, dict[str, Path]]) -> None:
    assert len(blocks(load_model(world[1], deepest=1))) == 2


def test_residuals_do_not_depend_on_what_a_context_is_batched_with(
    world: tuple[str, Path, dict[str, Path]],
) -> None:
    model = load_model(world[1])
    padded = ids()
    padded[0, 12:] = padded[0, 11]
    batched = residuals(model, padded, HOOKPOINTS)
    alone = residuals(model, padded[:1, :12], HOOKPOINTS)
    for h in HOOKPOINTS:
        assert torch.allclose(batched[h][0, :12], alone[h][0], atol=1e-4, rtol=1e-4)


def test_a_zero_adapter_gives_deltas_that_are_bitwise_zero(
    world: tuple[str, Path, dict[str, Path]], tmp_path: Path
) -> None:
    architecture, folder, _ = world
    zero = save_adapter(tmp_path / "zero", folder, architecture, scale=0.0)
    taken = dict(deltas(attach(load_model(folder), {"zero": zero}), ids(), HOOKPOINTS, ["zero"]))
    assert all(int(taken["zero"][h].count_nonzero()) == 0 for h in HOOKPOINTS)


def test_an_adapter_above_a_hookpoint_leaves_it_exactly_alone(
    world: tuple[str, Path, dict[str, Path]], tmp_path: Path
) -> None:
    architecture, folder, _ = world
    late = save_adapter(tmp_path / "late", folder, architecture, layers_to_transform=[2], scale=0.3)
    taken = dict(deltas(attach(load_model(folder), {"late": late}), ids(), HOOKPOINTS, ["late"]))
    assert int(taken["late"][Hookpoint(0)].count_nonzero()) == 0
    assert float(taken["late"][Hookpoint(2)].norm()) > 0


def test_fp64_is_fp64_throughout_and_leaves_the_model_in_fp32(
    world: tuple[str, Path, dict[str, Path]],
) -> None:
    model = attach(load_model(world[1]), world[2])
    before = {n: p.clone() for n, p in model.named_parameters()}
    with in_fp64(model):
        exact = residuals(model, ids(), HOOKPOINTS, "r2")
    double = AutoModelForCausalLM.from_pretrained(world[1], dtype=torch.float32).double().eval()
    with torch.no_grad(), Float64Casts():
        reference = (
            PeftModel.from_pretrained(double, world[2]["r2"])
            .double()(ids(), output_hidden_states=True)
            .hidden_states
        )
    for h in HOOKPOINTS:
        assert exact[h].dtype is torch.float64
        assert torch.allclose(exact[h], reference[h.hidden_states_index], rtol=1e-10, atol=1e-12)
    assert all(p.dtype is torch.float32 and torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_noise_floor_is_that_of_fp32(world: tuple[str, Path, dict[str, Path]]) -> None:
    model = attach(load_model(world[1], deepest=2), world[2])

    def measure(tokens: torch.Tensor) -> dict[str, Residuals]:
        return dict(deltas(model, tokens, HOOKPOINTS, ["r2", "r8"]))

    def higher(tokens: torch.Tensor) -> dict[str, Residuals]:
        with in_fp64(model):
            return measure(tokens)

    for by_hook in noise_floor(
        measure, higher, ids(), torch.ones(3, 20, dtype=torch.bool), ["r2", "r8"]
    ).values():
        for floor in by_hook.values():
            assert floor.snr is not None and 1e8 < floor.snr < 1e16
            assert 0.01 < floor.relative < 10
            assert floor.rounding > 0


def test_what_attention_and_mlp_add_makes_up_the_residual_stream(
    world: tuple[str, Path, dict[str, Path]],
) -> None:
    model = attach(load_model(world[1]), world[2])
    taken = dict(deltas(model, ids(), at_sites([Hookpoint(1), Hookpoint(2)], SITES), ["r8"]))
    for source in ("base", "r8"):
        stream = taken[source]
        sum_of_parts = (
            stream[Hookpoint(1)] + stream[Hookpoint(2, "attn_out")] + stream[Hookpoint(2, "mlp_out")]
        )
        assert stream[Hookpoint(2, "mlp_out")].norm() > 0.01 * stream[Hookpoint(2)].norm()
        assert torch.allclose(sum_of_parts, stream[Hookpoint(2)], atol=1e-4, rtol=1e-4)
