"""Does the recipe show the same of featureless data? On planted atoms it does not, on Gaussian deltas it
does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.divergence.figures import compare
from deltasae_ray.fit.featureless import gaussian_rows
from deltasae_ray.metrics.inputs import LeafInputs, Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer
from tests.metrics.worlds import ACTIVE, WORLDS, fitted, inputs_of

SETTINGS = Settings(k=ACTIVE, code_tokens=512, bootstrap=200)
SEED = 1
"""Of the fits: seed 0 draws the world's own atoms, and a decoder that starts on the truth is no null."""


def frozen(rows: torch.Tensor) -> Dictionary:
    trainer = Trainer(rows, Recipe(96, ACTIVE, batch_tokens=512, steps=150, train_decoder=False), SEED)
    while not trainer.done:
        trainer.step()
    return trainer.finish()


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Measure]]:
    """World → its measures: half of the atoms are the reference's, or there are none."""
    told = {}
    for name in ("half", "gaussian"):
        g = torch.Generator().manual_seed(0)
        world = WORLDS[name](g)
        inputs = inputs_of(world, g)
        rows = torch.from_numpy(inputs.delta_fit)
        own, gaussian = (fitted(x, SEED, d_sae=96, steps=300) for x in (rows, gaussian_rows(rows, 0)))
        told[name] = compare(
            inputs, LeafInputs(own, {"gaussian": gaussian, "frozen_decoder": frozen(rows)}), SETTINGS
        )
    return told


def test_real_atoms_are_found_that_gaussian_deltas_do_not_teach(found: dict[str, dict[str, Measure]]) -> None:
    m = found["half"]
    assert m["gain_over_gaussian"].ci[0] > 0.2
    assert m["structure_delta"].value > 0.4


def test_of_gaussian_deltas_the_recipe_shows_no_more_than_of_their_moments(
    found: dict[str, dict[str, Measure]],
) -> None:
    m = found["gaussian"]
    assert abs(m["gain_over_gaussian"].value) < 0.02
    assert abs(m["structure_delta"].value) < 0.05


def test_learning_the_directions_leaves_less_than_learning_to_use_random_ones(
    found: dict[str, dict[str, Measure]],
) -> None:
    m = found["half"]
    assert m["gain_over_frozen_decoder"].ci[0] > 0.2


def test_deltas_that_do_not_vary_have_no_such_figures_and_no_nan() -> None:
    g = torch.Generator().manual_seed(0)
    inputs = inputs_of(WORLDS["half"](g), g)
    own = fitted(torch.from_numpy(inputs.delta_fit), 0, d_sae=96, steps=5)
    constant = replace(
        inputs, delta_fit=np.ones_like(inputs.delta_fit), delta_eval=np.ones_like(inputs.delta_eval)
    )
    m = compare(constant, LeafInputs(own, {"gaussian": own, "frozen_decoder": own}), SETTINGS)
    for name in ("gain_over_gaussian", "gain_over_frozen_decoder"):
        assert m[name].value is None and m[name].reason, name
