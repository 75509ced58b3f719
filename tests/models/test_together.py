"""Base and adapters in one pass, against one pass each."""

from pathlib import Path

import pytest
import torch

from deltasae_ray.errors import AdapterError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import Residuals, deltas
from deltasae_ray.models.load import load_model
from deltasae_ray.models.precision import noise_floor
from deltasae_ray.models.together import alone, deltas_together, harvested_deltas
from tests.tiny import ARCHITECTURES, save_adapter, save_model

HOOKPOINTS = [Hookpoint(0), Hookpoint(2)]
NAMES = ["r2", "r8", "late"]


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """A model with adapters of different ranks, targets, alphas and layers."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    base = save_model(folder / "model", kind)
    wide = save_adapter(folder / "r8", base, kind, rank=8, seed=8, use_rslora=True, lora_alpha=4)
    first = ["c_attn"] if kind == "gpt2" else ["v_proj", "up_proj"]
    narrow = save_adapter(folder / "r2", base, kind, rank=2, seed=2, targets=first)
    late = save_adapter(folder / "late", base, kind, rank=3, seed=3, layers_to_transform=[2])
    return attach(load_model(base, deepest=2), {"r2": narrow, "r8": wide, "late": late})


def ids() -> torch.Tensor:
    return torch.randint(3, 250, (3, 20), generator=torch.Generator().manual_seed(0))


def test_one_pass_gives_the_deltas_of_one_pass_each(model: torch.nn.Module) -> None:
    apart, shared = (
        dict(deltas(model, ids(), HOOKPOINTS, NAMES)),
        dict(deltas_together(model, ids(), HOOKPOINTS, NAMES)),
    )
    assert list(shared) == ["base", *NAMES]
    for name, expected in apart.items():
        for h in HOOKPOINTS:
            assert (shared[name][h] - expected[h]).norm() <= 1e-5 * expected[h].norm()
    assert not shared["late"][Hookpoint(0)].any()
    assert shared["r8"][Hookpoint(0)].any()


def test_the_model_is_as_before_after_a_shared_pass(model: torch.nn.Module) -> None:
    before = dict(deltas(model, ids(), HOOKPOINTS, NAMES))
    list(deltas_together(model, ids(), HOOKPOINTS, NAMES, bf16=True))
    after = dict(deltas(model, ids(), HOOKPOINTS, NAMES))
    assert all(torch.equal(before[name][h], after[name][h]) for name in before for h in HOOKPOINTS)


def plain_bf16(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, Residuals]:
    with torch.autocast("cpu", torch.bfloat16):
        return {
            name: {h: x.float() for h, x in taken.items()}
            for name, taken in deltas(model, tokens, HOOKPOINTS, NAMES[:2])
        }


def test_difference_propagation_keeps_more_of_a_delta_than_plain_bf16_products(
    model: torch.nn.Module,
) -> None:
    mask = torch.ones(3, 20, dtype=torch.bool)

    def mixed(tokens: torch.Tensor) -> dict[str, Residuals]:
        return dict(deltas_together(model, tokens, HOOKPOINTS, NAMES[:2], bf16=True))

    def exact(tokens: torch.Tensor) -> dict[str, Residuals]:
        return dict(deltas(model, tokens, HOOKPOINTS, NAMES[:2]))

    ours = noise_floor(mixed, exact, ids(), mask, NAMES[:2])
    plain = noise_floor(lambda tokens: plain_bf16(model, tokens), exact, ids(), mask, NAMES[:2])
    for name in NAMES[:2]:
        for h in HOOKPOINTS:
            kept, lost = ours[name][h].snr, plain[name][h].snr
            assert kept is not None and lost is not None
            assert kept > 300, "rounding is relative to the delta"
            assert kept > 2 * lost


def test_a_zero_adapter_stays_exactly_zero_in_bf16(tmp_path: Path) -> None:
    base = save_model(tmp_path / "model")
    silent = attach(load_model(base), {"zero": save_adapter(tmp_path / "zero", base, scale=0.0)})
    taken = dict(deltas_together(silent, ids(), HOOKPOINTS, ["zero"], bf16=True))
    assert not any(taken["zero"][h].any() for h in HOOKPOINTS)


def test_what_cannot_share_a_pass_runs_by_itself_and_is_refused_in_bf16(tmp_path: Path) -> None:
    base = save_model(tmp_path / "model")
    folders = {
        "plain": save_adapter(tmp_path / "plain", base),
        "dora": save_adapter(tmp_path / "dora", base, use_dora=True),
    }
    both = attach(load_model(base, deepest=2), folders)
    assert alone(both, list(folders)) == ("dora",)
    shared = dict(harvested_deltas(both, ids(), HOOKPOINTS, list(folders), together=True, bf16=False))
    apart = dict(deltas(both, ids(), HOOKPOINTS, list(folders)))
    assert list(shared) == ["base", "plain", "dora"]
    for name, expected in apart.items():
        assert all((shared[name][h] - expected[h]).norm() <= 1e-5 * expected[h].norm() for h in HOOKPOINTS)
    with pytest.raises(AdapterError, match="dora .*set harvest.precision=fp32"):
        list(harvested_deltas(both, ids(), HOOKPOINTS, list(folders), together=False, bf16=True))
