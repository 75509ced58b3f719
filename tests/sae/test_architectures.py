"""What every architecture must do: recover planted atoms, resume without a trace, open in SAELens, and share
its work with peers."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae import kernels
from deltasae_ray.sae.architectures import (
    THRESHOLD_ON_FREEZING,
    Weights,
    dense_forward,
    missed_by_dead,
    prefixes,
    sparse_forward,
)
from deltasae_ray.sae.fitting import fit_dictionary
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.names import Architecture
from deltasae_ray.sae.peers import Peers
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from tests.sae.planted import planted

ARCHITECTURES = get_args(Architecture)


def trained(trainer: Trainer, steps: int | None = None) -> Trainer:
    for _ in range(steps or trainer.recipe.steps - trainer.steps_done):
        trainer.step()
    return trainer


@pytest.mark.parametrize(
    ("architecture", "found", "fvu"),
    # Matryoshka's small prefixes merge atoms, L1 shrinks codes: both are known prices, and the limits say how
    # high they may be.
    [
        ("batchtopk", 0.95, 0.15),
        ("jumprelu", 0.95, 0.15),
        ("matryoshka_batchtopk", 0.85, 0.3),
        ("standard", 0.8, 1.0),
    ],
)
def test_planted_atoms_are_recovered(architecture: str, found: float, fvu: float) -> None:
    world = planted(0, rows=6000)
    dictionary = fit_dictionary(world.x, 128, 4, architecture, steps=250, batch_tokens=512)
    nearest = (world.atoms @ dictionary.W_dec[dictionary.alive].T).max(dim=1).values
    held = held_out(dictionary, world.held_out)
    assert nearest.mean() > found and held.fvu < fvu
    assert 2.8 < held.l0 < 5.6  # k = 4, frozen from a batch's threshold, or only aimed at


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resumed_run_ends_as_an_undisturbed_one(architecture: Architecture) -> None:
    x = planted(1, rows=500).x
    recipe = Recipe(48, 4, architecture, batch_tokens=128, steps=30, dead_tokens=300)
    calm = trained(Trainer(x, recipe, seed=3))
    state = trained(Trainer(x, recipe, seed=3), 13).state_dict()
    resumed = Trainer(x, recipe, seed=3)
    resumed.load_state_dict(
        json.loads(json.dumps({k: v for k, v in state.items() if k != "tensors"}))
        | {"tensors": state["tensors"]}
    )
    assert trained(resumed).curve == calm.curve
    a, b = resumed.finish(), calm.finish()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "firing"):
        assert (getattr(a, name) is None and getattr(b, name) is None) or torch.equal(
            getattr(a, name), getattr(b, name)
        ), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_encodes_tokens_alone_and_opens_in_saelens(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    x = 300 * planted(2, rows=500).x + 40
    dictionary = fit_dictionary(x, 48, 4, architecture, steps=20, batch_tokens=100)
    assert (dictionary.architecture == "jumprelu") == (architecture in (*THRESHOLD_ON_FREEZING, "jumprelu"))
    z = dictionary.encode(x)
    torch.testing.assert_close(dictionary.encode(x[7:8])[0], z[7], rtol=1e-5, atol=1e-3)
    sae = SAE.load_from_disk(dictionary.save(tmp_path / "a"))
    expected = dictionary.decode(z)
    assert float((sae(x).detach() - expected).norm() / expected.norm()) < 1e-5
    assert dictionary.meta["recipe"]["architecture"] == architecture


@pytest.mark.parametrize("architecture", THRESHOLD_ON_FREEZING)
def test_the_frozen_threshold_lets_k_latents_fire_on_average(architecture: str) -> None:
    world = planted(3, rows=2000)
    assert held_out(
        fit_dictionary(world.x, 64, 4, architecture, steps=60, batch_tokens=256), world.x
    ).l0 == pytest.approx(4, rel=0.1)


def weights(d_sae: int, d_model: int, threshold: float) -> Weights:
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g), dim=1)
    log_threshold = torch.full((d_sae,), threshold).log()
    return Weights(rows.clone(), rows.clone(), torch.zeros(d_sae), torch.zeros(d_model), log_threshold)


def test_matryoshka_misses_the_mean_of_what_its_prefixes_miss() -> None:
    assert prefixes(128, 4) == (8, 16, 32, 64, 128) and prefixes(20, 4) == (10, 20) and prefixes(8, 8) == (8,)
    y, w = torch.randn(50, 12, generator=torch.Generator().manual_seed(1)), weights(64, 12, 1.0)
    forward = sparse_forward(y, w, "matryoshka_batchtopk", 2)
    pre = y @ w.encoder.T
    z = pre * (pre >= pre.flatten().topk(100).values[-1])
    missed = [(y - z[:, :width] @ w.decoder[:width]).square().sum() for width in (4, 8, 16, 32, 64)]
    torch.testing.assert_close(forward.missed, torch.stack(missed).mean())
    torch.testing.assert_close(forward.error, y - z @ w.decoder)


def test_a_threshold_that_lets_too_much_through_is_pushed_up_by_the_number_of_codes() -> None:
    y, w = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)), weights(32, 12, 0.5)
    w.log_threshold.requires_grad_()
    forward = dense_forward(y, w, "jumprelu", bandwidth=0.2)
    assert int(forward.price) == len(forward.fired) == int((y @ w.encoder.T > 0.5).sum())
    forward.price.backward()
    near = ((y @ w.encoder.T - 0.5).abs() < 0.1).sum(dim=0)
    torch.testing.assert_close(w.log_threshold.grad, -0.5 * near / 0.2)


@pytest.mark.parametrize("dead", [1, 5, 20], ids=["one", "fewer than half of d_model", "more"])
def test_the_dense_pass_of_dead_latents_has_value_and_gradients_of_the_sparse_one(dead: int) -> None:
    g = torch.Generator().manual_seed(2)
    y, left, latents = (
        torch.randn(50, 12, generator=g),
        torch.randn(50, 12, generator=g),
        torch.randperm(64, generator=g)[:dead],
    )
    ours, theirs = (Weights(*(p.requires_grad_() for p in weights(64, 12, 1.0))) for _ in range(2))
    for w in (ours, theirs):
        with torch.no_grad():
            w.b_enc.copy_(0.1 * torch.arange(64) / 64)
            w.b_dec.fill_(0.2)
    missed = missed_by_dead(y, ours, latents, left)
    with torch.no_grad():
        pre = kernels.preactivations(y, theirs.encoder[latents], theirs.b_enc[latents], theirs.b_dec)
    values, at = pre.topk(min(6, dead), dim=1)
    chosen = kernels.active(latents[at].reshape(-1), at.shape[1], 64)
    codes = kernels.encode(y, theirs.encoder, theirs.b_enc, theirs.b_dec, values.reshape(-1), chosen)
    expected = (left - kernels.decode(codes, theirs.decoder, chosen)).square().sum()
    torch.testing.assert_close(missed, expected)
    missed.backward()
    expected.backward()
    for name in ("encoder", "decoder", "b_enc", "b_dec"):
        torch.testing.assert_close(
            getattr(ours, name).grad, getattr(theirs, name).grad, rtol=1e-5, atol=1e-5, msg=name
        )


@dataclass
class Threads(Peers):
    """Peers that are threads of this process."""

    rank: int
    world: int
    barrier: threading.Barrier = field(kw_only=True)
    given: dict[int, Tensor] = field(kw_only=True)

    def sum(self, tensor: Tensor) -> None:
        self.given[self.rank] = tensor.clone()
        self.barrier.wait(60)
        total = sum(self.given[rank] for rank in range(self.world))
        self.barrier.wait(60)
        tensor.copy_(total)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_peers_that_share_every_batch_end_with_the_dictionary_of_one(architecture: Architecture) -> None:
    x = planted(1, rows=500).x
    recipe = Recipe(48, 4, architecture, batch_tokens=101, steps=25, dead_tokens=300)
    alone = trained(Trainer(x, recipe, seed=0))
    barrier, given = threading.Barrier(2), {}
    trainers = [
        Trainer(x, recipe, seed=0, peers=Threads(rank, 2, barrier=barrier, given=given)) for rank in range(2)
    ]
    threads = [threading.Thread(target=trained, args=(trainer,)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for name, weight in alone.weights._asdict().items():
        assert torch.equal(getattr(trainers[0].weights, name), getattr(trainers[1].weights, name)), name
        torch.testing.assert_close(getattr(trainers[0].weights, name), weight, rtol=1e-3, atol=1e-4)
    assert [p["dead"] for p in trainers[0].curve] == [p["dead"] for p in alone.curve]


@pytest.mark.parametrize("words", [{"lr": 0.0}, {"lr": float("nan")}, {"auxk": -1.0}, {"l1": float("inf")}])
def test_a_recipe_that_cannot_train_is_refused(words: dict) -> None:
    with pytest.raises(DictionaryError, match=next(iter(words))):
        Recipe(16, 2, **words)
