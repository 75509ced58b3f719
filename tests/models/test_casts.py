"""Weights held in bf16, used in fp32: exact where the checkpoint is bf16, also in training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deltasae_ray.errors import ConfigError, ModelError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.behaviour import language_head, losses
from deltasae_ray.models.capture import deltas
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import backbone, load_model
from deltasae_ray.models.precision import in_fp64
from deltasae_ray.models.source import resolve_model
from deltasae_ray.models.together import deltas_together
from deltasae_ray.models.zero3 import check_offload
from tests.adapt.worlds import config, contexts
from tests.tiny import ARCHITECTURES, save_adapter, save_model

HOOKPOINTS = [Hookpoint(0), Hookpoint(2)]
World = tuple[str, Path, dict[str, Path]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A bf16 checkpoint with adapters of every kind that reads or replaces weights of the base."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    model = save_model(folder / "model", kind, dtype=torch.bfloat16)
    found = {
        "plain": save_adapter(folder / "plain", model, kind),
        "norms": save_adapter(
            folder / "norms", model, kind, modules_to_save=["ln_1" if kind == "gpt2" else "input_layernorm"]
        ),
    }
    if kind != "gpt2":
        found["dora"] = save_adapter(folder / "dora", model, kind, use_dora=True)
        found["embedding"] = save_adapter(
            folder / "embedding", model, kind, targets=["embed_tokens", "o_proj"]
        )
    return kind, model, found


def ids() -> Tensor:
    return torch.randint(3, 250, (3, 20), generator=torch.Generator().manual_seed(0))


def base_types(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if ".lora_" not in name}


def test_a_bf16_checkpoint_held_in_bf16_has_the_deltas_of_fp32_bit_by_bit(world: World) -> None:
    _, folder, adapters = world
    wide, narrow = (attach(load_model(folder, deepest=2, weights=w), adapters) for w in ("fp32", "bf16"))
    assert (base_types(wide), base_types(narrow)) == ({torch.float32}, {torch.bfloat16})
    assert {p.dtype for name, p in narrow.named_parameters() if ".lora_" in name} == {torch.float32}
    plain = [name for name in adapters if name == "plain"]
    for taken in (
        lambda m: deltas(m, ids(), HOOKPOINTS, list(adapters)),
        lambda m: deltas_together(m, ids(), HOOKPOINTS, plain),
        lambda m: deltas_together(m, ids(), HOOKPOINTS, plain, bf16=True),
    ):
        ours, theirs = dict(taken(narrow)), dict(taken(wide))
        for name, expected in theirs.items():
            for h, x in expected.items():
                assert ours[name][h].dtype is torch.float32
                assert torch.equal(ours[name][h], x), f"{name}, {h}"
    with in_fp64(wide), in_fp64(narrow):
        ours, theirs = (dict(deltas(m, ids(), HOOKPOINTS, list(adapters))) for m in (narrow, wide))
    assert all(
        x.dtype is torch.float64 and torch.equal(ours[name][h], x)
        for name in theirs
        for h, x in theirs[name].items()
    )
    assert base_types(narrow) == {torch.bfloat16}, "nothing stays wide"


def test_losses_are_those_of_fp32_and_the_head_is_never_widened_whole(world: World) -> None:
    def found(weights: str) -> Tensor:
        model = load_model(world[1], weights=weights)  # type: ignore[arg-type]
        with torch.no_grad():
            hidden = backbone(model)(input_ids=ids()).last_hidden_state[:, :-1].flatten(0, 1)
        return losses(language_head(model), hidden[None], ids()[:, 1:].flatten())[0]

    assert torch.equal(found("bf16"), found("fp32"))


def test_training_on_bf16_weights_is_that_on_fp32_and_keeps_no_wide_weight(world: World) -> None:
    from deltasae_ray.adapt.text import split_text
    from deltasae_ray.adapt.trainer import LoraTrainer

    cfg = config(world[0], ranks=(4,), max_tokens=200)

    def trained(weights: str) -> tuple[list[dict], dict[str, Tensor]]:
        trainer = LoraTrainer(
            load_model(world[1], weights=weights),
            split_text(contexts(), cfg.batch_contexts),
            cfg,
            rank=4,
            seed=0,
        )  # type: ignore[arg-type]
        kept: list[torch.Size] = []
        wide = {
            tuple(m.weight.shape)
            for m in trainer.model.modules()
            if isinstance(getattr(m, "base_layer", None), nn.Module)
        }

        def keep(t: Tensor) -> Tensor:
            if (
                t.dtype is torch.float32
                and not t.requires_grad
                and tuple(t.shape) in wide | {s[::-1] for s in wide}
            ):
                kept.append(t.shape)
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            while not trainer.progress.done:
                trainer.advance()
        assert bool(kept) == (weights == "fp32"), "what autograd saves of frozen weights"
        return trainer.progress.curve, {
            name: p.detach() for name, p in trainer.model.named_parameters() if ".lora_B" in name
        }

    (curve, ours), (expected, theirs) = trained("bf16"), trained("fp32")
    assert len(curve) > 1
    for point, other in zip(curve, expected, strict=True):
        assert point == pytest.approx(other, abs=1e-4)
    for name, x in theirs.items():
        assert x.any()
        assert (ours[name] - x).norm() <= 0.1 * x.norm(), (
            name
        )  # Adam makes much of the smallest gradients' rounding


def test_rounded_weights_are_another_model(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path / "model"))
    narrow, wide = resolve_model(ModelConfig(folder, weights="bf16")), resolve_model(ModelConfig(folder))
    assert narrow.digest != wide.digest and narrow.weights == "bf16"
    assert resolve_model(ModelConfig(folder, weights="bf16"), weights=False).digest == "", (
        "a plan reads no weights"
    )


@pytest.mark.parametrize(("words", "told"), [
    ({"offload": "cpu"}, "set model.sharding=zero3"),
    ({"offload": "nvme", "sharding": "zero3"},
        "nvme is neither none nor cpu nor an absolute path.*model.offload=/mnt/nvme"),
    ({"offload": "/fast", "sharding": "zero3", "weights": "bf16"}, "takes model.weights=fp32"),
])  # fmt: skip
def test_words_that_contradict_each_other_are_refused(words: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ModelConfig(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "said"),
    [(False, "needs a GPU on every node.*Set model.offload=cpu"), (True, "libaio.*set model.offload=cpu")],
)
def test_files_for_offloaded_parameters_are_refused_where_deepspeed_cannot_write_them(
    gpu: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.ops.op_builder.async_io import AsyncIOBuilder

    if gpu and AsyncIOBuilder().is_compatible():
        pytest.skip("libaio is installed here")
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    with pytest.raises(ModelError, match=said):
        check_offload(ModelConfig("any", sharding="zero3", offload="/fast"))
