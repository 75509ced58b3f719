"""Model, harvest, fit, training and interventions on a device that is not the CPU, without one
(`tests/elsewhere.py`).

Under torch's FakeTensorMode: passes of the base and of adapters, one by one and together, in fp32, bf16 and
fp64, splits, low-rank coordinates, and passes that go on from another residual stream. What branches on
numbers cannot run in it, and runs in `pretended`: the harvest to its shards with the noise floor and the
random adapter's strength (counts of tokens, files), the behaviour gate and patching (documents, `nonzero`),
LoRA training (losses that must be finite), dictionaries (dead latents, `bincount`). In neither: ZeRO-3 and
gangs (tests marked gpu), mixtures of experts (transformers counts tokens an expert by a function that the CPU
has for floats only), memory of a device (`torch.cuda.mem_get_info`).
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasae_ray.adapt.text import split_text
from deltasae_ray.adapt.trainer import LoraTrainer
from deltasae_ray.analyses.causal.model import document_effects
from deltasae_ray.analyses.lens.model import logit_lens
from deltasae_ray.analyses.loss_recovered.model import Patched, document_recovery
from deltasae_ray.analyses.loss_recovered.stand_ins import TrainingRows, stand_ins
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.harvest import prepare, worker
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.behaviour import document_losses
from deltasae_ray.models.capture import deltas, unit_ids
from deltasae_ray.models.load import load_model, load_tokenizer
from deltasae_ray.models.local import module_deltas
from deltasae_ray.models.patching import continued, whole_pass
from deltasae_ray.models.precision import in_fp64
from deltasae_ray.models.split import split_deltas
from deltasae_ray.models.together import deltas_together
from deltasae_ray.sae.fitting import fit_dictionary
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.stacked import train_together
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards import open_shards
from tests.adapt.worlds import config, contexts
from tests.analyses.causal.test_model import AT, probe
from tests.analyses.loss_recovered.test_model import unit
from tests.elsewhere import DEVICE, Elsewhere, faked, moved, pretended, there
from tests.harvest import study
from tests.harvest.study import corpus, replace_run_units, run, run_units_here
from tests.tiny import save_adapter, save_model

HOOKPOINTS = [Hookpoint(1), Hookpoint(2)]


def attached(model: Path, adapters: tuple[Path, Path], weights: Any = "fp32") -> Any:
    return attach(load_model(model, weights=weights), {"r2": adapters[0], "r4": adapters[1]})


@pytest.mark.parametrize(
    ("architecture", "weights"), [pytest.param("llama", "fp32", marks=pytest.mark.prove), ("gemma2", "bf16")]
)
def test_every_pass_of_a_model_runs_under_fakes(architecture: str, weights: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", architecture)
    r2, r4 = (save_adapter(tmp_path / f"r{rank}", folder, architecture, rank=rank) for rank in (2, 4))
    model = attached(folder, (r2, r4), weights).to(DEVICE)
    with faked():
        ids = torch.ones(2, 9, dtype=torch.int64, device=DEVICE)
        found = [x for _, by_hook in deltas(model, ids, HOOKPOINTS, ["r2", "r4"]) for x in by_hook.values()]
        for bf16 in (False, True):
            found += [
                x
                for _, by_hook in deltas_together(model, ids, HOOKPOINTS, ["r2", "r4"], bf16=bf16)
                for x in by_hook.values()
            ]
        found += list(split_deltas(model, ids, HOOKPOINTS, "r2").injected.values())
        found += [m.change for m in module_deltas(model, ids, "r2").values()]
        taken, last = whole_pass(model, ids, HOOKPOINTS, "r2")
        found += [last, continued(model, ids, HOOKPOINTS[0], taken[HOOKPOINTS[0]], "r2")]
        with in_fp64(model):
            wide = dict(deltas(model, ids, HOOKPOINTS, ["r2"]))["r2"]
    assert {x.device.type for x in found} == {DEVICE} and {x.dtype for x in wide.values()} == {torch.float64}


REST = ("batchtopk", "matryoshka_batchtopk", "jumprelu")
"""Architectures that share their steps with topk."""


@pytest.fixture
def loaded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Models that gangs load onto the device keep their numbers there; gives what loads them else."""
    load = worker.load_with_adapters
    for module in (worker, prepare):
        monkeypatch.setattr(
            module,
            "load_with_adapters",
            lambda s, cfg, refs, _device, **how: moved(load(s, cfg, refs, "cpu", **how)),
        )
    return load


@pytest.mark.parametrize("precision", ["fp32", pytest.param("mixed", marks=pytest.mark.prove)])
def test_a_harvest_writes_the_shards_of_one_on_the_cpu(
    precision: Any,
    tiny_model: Path,
    tiny_adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loaded_elsewhere: Any,
) -> None:
    few = build_corpus(
        CorpusConfig(context_len=12, fit_tokens=50, eval_tokens=25, contexts_per_unit=2),
        load_tokenizer(tiny_model),
    )
    monkeypatch.setattr(study, "corpus", lambda _: few)
    how: dict[str, Any] = {"precision": precision, "noise_contexts": 1, "sites": ("resid_post", "lora")}
    replace_run_units(monkeypatch, partial(run_units_here, device=DEVICE))
    with pretended():
        ours = open_shards(
            f"{tmp_path}/there/{run(tmp_path / 'there', tiny_model, list(tiny_adapters), **how).key}"
        )
    replace_run_units(monkeypatch, run_units_here)
    for module in (worker, prepare):
        monkeypatch.setattr(module, "load_with_adapters", loaded_elsewhere)
    theirs = open_shards(
        f"{tmp_path}/cpu/{run(tmp_path / 'cpu', tiny_model, list(tiny_adapters), **how).key}"
    )
    for source in ("base", "r2", "r4", "random"):
        a, b = ours.read(2, source), theirs.read(2, source)
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b), source


def test_gate_lens_and_patching_give_the_figures_of_the_cpu(
    tiny_model: Path, tiny_adapters: tuple[Path, Path]
) -> None:
    own, other = (fit_dictionary(X, d_sae=64, k=4, steps=5, seed=seed) for seed in (0, 1))
    made = stand_ins(own, other, TrainingRows(Moments.of(X.numpy()), X, X.flip(0)), 0)

    def figures(model: Any, probes: Any) -> list[Any]:
        patches = [Patched("r4", "r4", AT, {name: made[name] for name in ("encoder", "monitor")})]
        directions = torch.eye(32)[:3]
        lens = [(found.promoted[0], found.peak) for found in logit_lens(model, directions)]
        rows = [
            *document_losses(model, unit(2), ["r2", "r4"], 8),
            *document_recovery(model, unit(2), patches, positions=8),
        ]
        return [rows, document_effects(model, unit(2), probes, positions=4), lens]

    here = attached(tiny_model, tiny_adapters)
    made_here = probe(here)  # dictionaries stay on the CPU, and take rows from anywhere
    probes = [replace(made_here, amounts=lambda x: made_here.amounts(x.cpu()), random=made_here.random[:1])]
    wanted = figures(here, probes)
    with pretended():
        found = figures(moved(attached(tiny_model, tiny_adapters)), probes)
    close(found, wanted)


def close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            close(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(wanted, rel=1e-3, abs=1e-4) if isinstance(wanted, float) else wanted)


def test_lora_training_learns_the_same(tiny_model: Path) -> None:
    cfg = config("llama", max_tokens=400)

    def trained(model: Any) -> LoraTrainer:
        made = LoraTrainer(model, split_text(contexts(), cfg.batch_contexts), cfg, rank=4, seed=0)
        while not made.progress.done:
            made.advance()
        return made

    wanted = trained(load_model(tiny_model)).facts()["curve"]
    with pretended():
        found = trained(moved(load_model(tiny_model)))
    close(found.facts()["curve"], wanted)
    assert all(isinstance(p, Elsewhere) for p in found._factors.values())


@pytest.fixture
def fused_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Adam's fused step, which GPUs have."""
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"],
        "_get_fused_kernels_supported_devices",
        lambda: ["cpu", "cuda", DEVICE],
    )
    yield


X = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    32, 32, generator=torch.Generator().manual_seed(1)
)


def recipe(architecture: str) -> Recipe:
    return Recipe(d_sae=64, k=4, architecture=architecture, steps=8, batch_tokens=64, dead_tokens=64)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fused_there")
@pytest.mark.parametrize(
    "architecture", ["topk", *(pytest.param(a, marks=pytest.mark.prove) for a in REST), "standard"]
)
def test_a_dictionary_is_trained_resumed_and_measured(architecture: str) -> None:
    def fitted(device: str) -> Any:
        first = Trainer(X, recipe(architecture), 0, device)
        for _ in range(4):
            first.step()
        resumed = Trainer(X, first.recipe, 0, device)
        resumed.load_state_dict(first.state_dict())
        while not resumed.done:
            resumed.step()
        dictionary = resumed.finish()
        return held_out(dictionary, X.numpy(), dictionary.mean)

    wanted = fitted("cpu")
    with pretended():
        found = fitted(DEVICE)
    assert found.fvu == pytest.approx(wanted.fvu, rel=0.02)


@pytest.mark.usefixtures("fused_there")
def test_stacked_dictionaries_train_and_part() -> None:
    with pretended():
        members = [Trainer(X, recipe("topk"), seed, DEVICE) for seed in range(3)]
        assert train_together(members, 5) == [None] * 3
        members[0].step()
        assert members[0].finish().W_dec.device.type == DEVICE


class _Two(Peers):
    """A peer that adds nothing."""

    world = 2


@pytest.mark.usefixtures("fused_there")
@pytest.mark.parametrize(
    "architecture", [*(pytest.param(a, marks=pytest.mark.prove) for a in ("topk", "standard")), "batchtopk"]
)
def test_peers_share_a_batch(architecture: str) -> None:
    with pretended():
        made = Trainer(X, recipe(architecture), 0, DEVICE, _Two())
        for _ in range(3):
            made.step()
    assert made.weights.decoder.device.type == DEVICE


def test_a_tensor_left_on_the_cpu_is_an_error(tiny_model: Path, tiny_adapters: tuple[Path, Path]) -> None:
    """So that the tests above can fail."""
    ids = unit_ids(corpus(tiny_model).of("eval")[0])
    faint = load_model(tiny_model).to(DEVICE)
    with (
        faked(),
        pytest.raises(RuntimeError, match="same device"),
    ):  # ids on the CPU pass: torch's fakes look rows up by any index
        continued(
            faint, torch.ones(2, 9, dtype=torch.int64, device=DEVICE), HOOKPOINTS[0], torch.zeros(2, 9, 32)
        )
    model = moved(attached(tiny_model, tiny_adapters))
    with pretended():
        with pytest.raises(RuntimeError, match="same device"):
            list(deltas(model, ids, HOOKPOINTS, []))
        with pytest.raises(RuntimeError, match="same device"):
            there(torch.ones(3)) + torch.ones(3)
        assert float((there(torch.ones(3)) + torch.ones(())).sum()) == 6, "a number on the CPU is none"
        with pytest.raises((RuntimeError, TypeError)):
            there(torch.ones(3)).numpy()
        assert there(torch.ones(3)).cpu().numpy().sum() == 3
