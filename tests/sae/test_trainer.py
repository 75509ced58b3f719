"""What training recovers, and that stopping and resuming leaves no trace."""

import dataclasses
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from deltasae_ray.errors import DictionaryError, PrecisionError
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.fitting import auto_size, default_steps, effective_rank, fit_dictionary
from deltasae_ray.sae.metrics import fvu, held_out
from deltasae_ray.sae.names import Architecture
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from tests.sae.planted import planted, rank_one


def run(trainer: Trainer, steps: int | None = None) -> Trainer:
    for _ in range(steps if steps is not None else trainer.recipe.steps - trainer.steps_done):
        trainer.step()
    return trainer


def assert_equal(a: Dictionary, b: Dictionary) -> None:
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "firing", "energy"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What a dictionary fitted to a planted world found of it."""

    cosine: float
    """Mean, over the true atoms, of the largest cosine to a living latent."""
    above: float
    """Share of the atoms with one above .9."""
    fvu: float
    pca: float
    """FVU of as many principal directions as there are active latents."""


def recovered(seed: int) -> Recovered:
    world = planted(seed)
    dictionary = fit_dictionary(world.x, d_sae=128, k=4, seed=seed, steps=500)
    nearest = (world.atoms @ dictionary.W_dec[dictionary.alive].T).max(dim=1).values
    principal = torch.linalg.svd(world.x - world.x.mean(0), full_matrices=False).Vh[:4]
    rows, mean = world.held_out, world.x.mean(0)
    by_pca = fvu(rows, mean + (rows - mean) @ principal.T @ principal, mean)
    return Recovered(
        float(nearest.mean()),
        float((nearest > 0.9).double().mean()),
        held_out(dictionary, world.held_out).fvu,
        by_pca,
    )


def top_latent(seed: int, k: int) -> tuple[float, float]:
    """(|cos| of the strongest latent with what a rank-one writer writes, share of the energy in latents along
    it)."""
    x, v = rank_one(seed)
    dictionary = fit_dictionary(x, d_sae=64, k=k, seed=seed)
    share = dictionary.energy / dictionary.energy.sum()
    return abs(float(dictionary.W_dec[share.argmax()] @ v)), float(
        share[(dictionary.W_dec @ v).abs() > 0.9].sum()
    )


def test_planted_dictionary_is_recovered() -> None:
    found = recovered(0)
    assert found.cosine > 0.95 and found.above >= 0.95 and found.fvu < 0.12 and found.pca > 0.6


def test_a_rank_one_writer_is_one_latent() -> None:
    cosine, energy = top_latent(0, k=1)
    assert cosine > 0.999 and energy > 0.95


@pytest.mark.prove
def test_planted_dictionaries_are_recovered_over_five_seeds() -> None:
    found = [recovered(seed) for seed in range(5)]
    means = Recovered(
        *(
            statistics.mean(getattr(one, field.name) for one in found)
            for field in dataclasses.fields(Recovered)
        )
    )
    assert means.cosine > 0.95 and means.above >= 0.95 and means.fvu < 0.12 and means.pca > 0.6, (
        means,
        found,
    )


@pytest.mark.prove
@pytest.mark.parametrize("k", [1, 4])
def test_rank_one_writers_are_one_latent_over_five_seeds(k: int) -> None:
    """With more codes than a row has directions single seeds come to .987 to .995 by how sums are rounded:
    the mean must hold."""
    cosines, energies = zip(*(top_latent(seed, k) for seed in range(5)), strict=True)
    assert statistics.mean(cosines) > 0.99 and statistics.mean(energies) > 0.95, (cosines, energies)


def test_directions_that_dominate_are_in_the_start_with_both_signs() -> None:
    x, v = rank_one(0)
    start = Trainer(x, Recipe(32, 4), seed=0).weights.decoder.detach()
    along = start @ v
    assert along.max() > 0.999 and along.min() < -0.999 and (along.abs() > 0.9).sum() == 2
    scattered = Trainer(planted(0).x, Recipe(32, 4), seed=0)
    assert torch.equal(scattered.weights.encoder, scattered.weights.decoder)
    assert (scattered.weights.decoder @ planted(0).atoms.T).abs().max() < 0.5


def test_the_same_seed_gives_the_same_dictionary_and_another_seed_another() -> None:
    x = planted(0, rows=600).x
    a, b, c = (fit_dictionary(x, d_sae=64, k=4, seed=seed, steps=40, batch_tokens=128) for seed in (5, 5, 6))
    assert_equal(a, b)
    assert not torch.equal(a.W_dec, c.W_dec)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_frozen_decoder_keeps_its_random_rows_through_training_and_a_resume_and_explains_less(
    architecture: Architecture,
) -> None:
    x = rank_one(0)[0]  # a start that may look at the rows would hold their one direction
    recipe = Recipe(48, 4, architecture, batch_tokens=256, steps=120, train_decoder=False)
    trainer = Trainer(x, recipe, seed=1)
    start = trainer.weights.decoder.detach().clone()
    assert start.norm(dim=1).allclose(torch.ones(48)) and (start @ rank_one(0)[1]).abs().max() < 0.6
    state = run(trainer, 50).state_dict()
    resumed = Trainer(x, recipe, seed=1)
    resumed.load_state_dict(
        json.loads(json.dumps({k: v for k, v in state.items() if k != "tensors"}))
        | {"tensors": state["tensors"]}
    )
    frozen, again = run(trainer).finish(), run(resumed).finish()
    assert_equal(frozen, again)
    assert torch.equal(frozen.W_dec, start) and not torch.equal(frozen.W_enc.T, start)
    learned = run(Trainer(x, replace(recipe, train_decoder=True), seed=1)).finish()
    assert held_out(learned, x).fvu < 0.5 * held_out(frozen, x).fvu < 0.5


@pytest.mark.parametrize("stop", [1, 37, 60])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(stop: int) -> None:
    x = planted(1, rows=700).x
    recipe = Recipe(
        96, 4, batch_tokens=128, steps=80, dead_tokens=300
    )  # dead latents, an epoch's end and the decay are all passed
    calm = run(Trainer(x, recipe, seed=3)).finish()
    state = run(Trainer(x, recipe, seed=3), stop).state_dict()
    resumed = Trainer(x, recipe, seed=3)
    resumed.load_state_dict(
        json.loads(json.dumps({k: v for k, v in state.items() if k != "tensors"}))
        | {"tensors": state["tensors"]}
    )
    assert resumed.steps_done == stop
    after = run(resumed).finish()
    assert_equal(calm, after)
    assert calm.meta == after.meta
    assert any(point["dead"] for point in calm.meta["curve"])


def test_a_checkpoint_is_not_changed_by_training_on() -> None:
    trainer = run(Trainer(planted(1, rows=300).x, Recipe(64, 4, batch_tokens=64, steps=20), seed=0), 5)
    state = trainer.state_dict()
    before = {name: tensor.clone() for name, tensor in state["tensors"].items()}
    run(trainer)
    assert all(torch.equal(before[name], state["tensors"][name]) for name in before)


def test_a_checkpoint_of_another_shape_or_seed_is_refused() -> None:
    x = planted(1, rows=300).x
    state = Trainer(x, Recipe(64, 4, steps=20), seed=0).state_dict()
    for other in (
        Trainer(x, Recipe(32, 4, steps=20), seed=0),
        Trainer(x, Recipe(64, 4, steps=20), seed=1),
        Trainer(x[:200], Recipe(64, 4, steps=20), seed=0),
    ):
        with pytest.raises(DictionaryError, match="checkpoint"):
            other.load_state_dict(state)


def test_decoder_rows_are_unit_vectors_and_codes_are_in_raw_units() -> None:
    world = planted(2, rows=2000)
    x, offset = 1000 * world.x + 50, torch.full((256,), 50.0)
    dictionary = fit_dictionary(x, d_sae=128, k=4, steps=150, batch_tokens=512)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(128), rtol=0, atol=1e-6)
    assert held_out(dictionary, 1000 * world.held_out + offset).fvu < 0.25
    plain = fit_dictionary(world.x, d_sae=128, k=4, steps=150, batch_tokens=512)
    assert held_out(plain, world.held_out).fvu < 0.25


def test_auxk_brings_dead_latents_back() -> None:
    x = planted(4, rows=3000, subspace=96, atoms=300).x
    alive = {}
    for auxk in (0.0, 1 / 32):
        trainer = Trainer(x, Recipe(128, 4, batch_tokens=256, steps=150, auxk=auxk, dead_tokens=500), seed=0)
        with torch.no_grad():
            trainer.weights.encoder[32:] *= 0.01  # too weak to be among the k strongest
        alive[auxk] = int(run(trainer).finish().alive[32:].sum())
    assert alive[0.0] < 20 and alive[1 / 32] > 80, alive


def test_firing_and_energy_are_those_of_the_final_dictionary() -> None:
    x = planted(3, rows=500).x
    dictionary = fit_dictionary(x, d_sae=64, k=4, steps=30, batch_tokens=100)
    z = dictionary.encode(x)
    torch.testing.assert_close(dictionary.firing, (z > 0).float().mean(0))
    torch.testing.assert_close(dictionary.energy, z.square().mean(0))
    assert dictionary.mean is not None and torch.allclose(dictionary.mean, x.mean(0), atol=1e-6)


def test_numpy_and_torch_rows_give_the_same_dictionary() -> None:
    x = planted(3, rows=300).x
    assert_equal(
        fit_dictionary(x, d_sae=32, k=2, steps=5),
        fit_dictionary(x.numpy().astype(np.float64), d_sae=32, k=2, steps=5),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_counted(value: float) -> None:
    x = torch.randn(200, 8)
    x[[3, 7, 150], 2] = value
    with pytest.raises(PrecisionError, match="3 of 200"):
        fit_dictionary(x, d_sae=16, k=2)


def test_a_few_rows_that_are_not_finite_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    x[[3, 1500], 2] = torch.tensor([float("nan"), float("inf")])
    dictionary = fit_dictionary(x, d_sae=16, k=2, steps=3)
    assert dictionary.meta["rows"] == 2998 and "2 of 3000 rows" in caplog.text


@pytest.mark.parametrize(
    ("x", "words", "message"),
    [
        (torch.randn(10, 8), {}, "rows"),
        (torch.randn(100, 8, 2), {}, "matrix"),
        (torch.zeros(100, 8), {}, "equal"),
        (torch.full((100, 8), 0.1), {}, "equal"),
        (torch.randn(100, 8), {"k": 17}, "k=17 exceeds d_sae=16"),
        (torch.randn(100, 8), {"k": 0}, "k=0"),
        (torch.randn(100, 8), {"architecture": "gated"}, "gated"),
        ([[1.0]], {}, "list"),
    ],
)
def test_impossible_input_is_a_typed_error(x: object, words: dict, message: str) -> None:
    with pytest.raises(DictionaryError, match=message):
        fit_dictionary(x, **({"d_sae": 16, "k": 2} | words))  # type: ignore[arg-type]


def test_training_that_runs_off_is_an_error_and_no_dictionary() -> None:
    with pytest.raises(DictionaryError, match="learning rate"):
        run(Trainer(planted(0, rows=300).x, Recipe(32, 4, batch_tokens=64, steps=50, lr=1e30), seed=0))


def test_d_sae_follows_the_effective_rank_by_default() -> None:
    assert (auto_size(3.0), auto_size(40.0), auto_size(64.0)) == (256, 512, 1024)
    x = planted(0, rows=2000, subspace=40, atoms=200, noise=0.0).x
    assert 25 < effective_rank(x) <= 40.01
    assert fit_dictionary(x, steps=1).d_sae == auto_size(effective_rank(x))


def test_default_steps_grow_with_rows_and_shrink_with_width() -> None:
    assert default_steps(1000, 192, 512, 1024) == 500
    assert default_steps(60_000, 192, 1024, 1024) == 1171 and default_steps(60_000, 192, 2048, 1024) == 620
    assert default_steps(10**7, 192, 512, 1024) == 1500
    assert default_steps(10**7, 2048, 16384, 1024) == 500


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [Recipe(16, 2, steps=100, lr=1.0).rate(step) for step in range(100)]
    assert Recipe(4096, 2, steps=100, lr=1.0).rate(50) == 0.5
    assert rates[0] == pytest.approx(0.2) and max(rates) == 1.0 and rates[-1] == pytest.approx(1 / 30)
    assert all(rate > 0 for rate in rates)


def test_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe(16, 2).k = 3  # type: ignore[misc]
