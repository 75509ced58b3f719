"""Identities that hold to rounding (science: acceptance F2, F3, F10)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deltasae_ray.errors import PrecisionError
from deltasae_ray.harvest.sources import _judge
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef, attach
from deltasae_ray.models.capture import Residuals, deltas
from deltasae_ray.models.load import has_post_norm, load_model
from deltasae_ray.models.local import module_deltas
from deltasae_ray.models.peft_names import peft_name
from deltasae_ray.models.precision import in_fp64, noise_floor
from deltasae_ray.models.split import split_deltas
from tests.tiny import ARCHITECTURES, save_adapter, save_model

L = Hookpoint(2)


def ids() -> Tensor:
    return torch.randint(3, 250, (3, 12), generator=torch.Generator().manual_seed(0))


def only_o_proj(folder: Path, architecture: str) -> tuple[Path, nn.Module]:
    """A model in fp64 with one adapted module, the output projection of attention in block 2; rank 3."""
    model = save_model(folder / "model", architecture)
    adapter = save_adapter(
        folder / "o",
        model,
        architecture,
        rank=3,
        targets=["o_proj"],
        layers_to_transform=[L.layer],
        scale=0.3,
    )
    return model, attach(load_model(model, deepest=L.layer), {"writer": adapter})


def delta_at_scale(model: nn.Module, factor: float, hookpoint: Hookpoint) -> Tensor:
    name = peft_name(model, "writer")
    layers = [
        m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict) and name in m.scaling
    ]  # type: ignore[operator]
    for layer in layers:
        layer.scaling[name] *= factor  # type: ignore[index]
    try:
        return dict(deltas(model, ids(), [hookpoint], ["writer"]))["writer"][hookpoint].flatten(0, 1)
    finally:
        for layer in layers:
            layer.scaling[name] /= factor  # type: ignore[index]


def test_a_lone_writer_in_a_llama_block_is_linear_of_its_rank_and_its_own_product(tmp_path: Path) -> None:
    folder, model = only_o_proj(tmp_path, "llama")
    written = Hookpoint(L.layer, "attn_out")  # the MLP after it is not linear
    with in_fp64(model):
        once, twice = delta_at_scale(model, 1.0, written), delta_at_scale(model, 2.0, written)
        ((name, local),) = module_deltas(model, ids(), "writer").items()
    assert once.dtype is torch.float64
    assert (twice - 2 * once).norm() < 1e-12 * (2 * once).norm()
    assert name.endswith("layers.2.self_attn.o_proj")
    assert local.coordinates.shape == (3, 12, 3)
    assert (local.change.flatten(0, 1) - once).norm() < 1e-12 * once.norm()
    values = torch.linalg.svdvals(once)
    assert values[2] > 1e-6 * values[0] and values[3] < 1e-12 * values[0], "rank exactly r"
    assert not has_post_norm(folder)


def test_a_norm_after_the_writer_breaks_linearity_and_is_flagged(tmp_path: Path) -> None:
    folder, model = only_o_proj(tmp_path, "gemma3")
    written = Hookpoint(L.layer, "attn_out")
    with in_fp64(model):
        once, twice = delta_at_scale(model, 1.0, written), delta_at_scale(model, 2.0, written)
    assert (twice - 2 * once).norm() > 1e-3 * (2 * once).norm()
    assert has_post_norm(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_propagated_and_injected_add_up_to_the_delta(architecture: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", architecture)
    everywhere = save_adapter(tmp_path / "all", folder, architecture, scale=0.3)
    above = save_adapter(tmp_path / "early", folder, architecture, scale=0.3, layers_to_transform=[1])
    model = attach(load_model(folder), {"all": everywhere, "early": above})
    hookpoints = [Hookpoint(0), Hookpoint(1), L]
    model.double()
    whole = dict(deltas(model, ids(), hookpoints, ["all", "early"]))
    parts = {name: split_deltas(model, ids(), hookpoints, name) for name in ("all", "early")}
    for name, split in parts.items():
        for h in hookpoints:
            delta = whole[name][h]
            assert (split.propagated[h] + split.injected[h] - delta).norm() <= 1e-10 * (1 + delta.norm())
    assert not parts["all"].propagated[Hookpoint(0)].any(), "before the first block nothing has changed"
    assert parts["all"].injected[L].norm() > 0 and parts["all"].propagated[L].norm() > 0
    assert not parts["early"].injected[L].any(), "a block without adapted modules only passes on"
    assert not whole["early"][Hookpoint(0)].any()


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()


@pytest.mark.parametrize(
    ("rho", "bf16", "fp16", "fp32"),
    [(0.01, 0.055, 8.6e-4, 1e-11), (0.003, 0.54, 9.6e-3, 1e-10), (0.001, 2.7, 0.086, 1e-9)],
)
def test_rounding_residuals_before_the_subtraction_costs_what_the_table_says(
    rho: float, bf16: float, fp16: float, fp32: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(400, 2048, generator=generator, dtype=torch.float64)
    delta = rho * torch.randn(400, 2048, generator=generator, dtype=torch.float64)
    for dtype, expected in ((torch.bfloat16, bf16), (torch.float16, fp16)):
        error = rounded(h + delta, dtype) - rounded(h, dtype) - delta
        fvu = float(error.square().sum() / (delta - delta.mean(0)).square().sum())
        assert expected / 1.5 < fvu < expected * 1.5
    error = rounded(h + delta, torch.float32) - rounded(h, torch.float32) - delta
    assert float(error.square().sum() / delta.square().sum()) < 1.5 * fp32


def test_bf16_residuals_of_a_weak_adapter_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    model = attach(
        load_model(folder, deepest=L.layer), {"weak": save_adapter(tmp_path / "weak", folder, scale=1.5e-4)}
    )

    def exact(tokens: Tensor) -> dict[str, Residuals]:
        return dict(deltas(model, tokens, [L], ["weak"]))

    def in_bf16(tokens: Tensor) -> dict[str, Residuals]:
        found = exact(tokens)
        base = found["base"][L].bfloat16()
        return {
            "base": {L: base.float()},
            "weak": {L: (found["base"][L] + found["weak"][L]).bfloat16().float() - base.float()},
        }

    (floor,) = noise_floor(in_bf16, exact, ids(), torch.ones(3, 12, dtype=torch.bool), ["weak"])[
        "weak"
    ].values()
    assert 5e-4 < floor.relative < 4e-3
    with pytest.raises(PrecisionError, match="below harvest.min_snr=10"):
        _judge(AdapterRef("weak", "k", "d", 4, 8.0), {L: floor.to_dict()}, 10.0)
    assert np.isfinite(floor.signal)
