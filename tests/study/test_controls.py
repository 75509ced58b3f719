"""Which dictionaries the chosen controls fit and what is planned of them, and loss recovered from shards to
rows; no Ray here."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.controls import CONTROL_SEED, REFERENCE_SEED
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.isotropic import isotropic_max_cosine
from deltasae_ray.metrics.geometry.matching import best_cosines, max_cosine
from deltasae_ray.metrics.geometry.matching_figures import mean_match
from deltasae_ray.metrics.inputs import LayerInputs, Settings, living_rows
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.identity import BASE
from deltasae_ray.sae.recipe import Recipe, measure
from deltasae_ray.sae.start import start_rows
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.study.compare import HeldAgainst, _spec
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import control_dictionaries, control_points
from deltasae_ray.study.grid import grid_points, trials
from deltasae_ray.study.state import StudyState

FIT = FitConfig(d_sae=(32, 64), k=(4,))
ADAPTERS = (AdapterRef("r2", "", "", 2, 4.0), AdapterRef("random", "", "", 2, 4.0, kind="random"))


def points(*controls: str, seeds: int = 1) -> list[FitPoint]:
    return points_of(replace(FIT, seeds=seeds), *controls)


def points_of(fit: FitConfig, *controls: str) -> list[FitPoint]:
    chosen = DivergeConfig(controls=controls).chosen
    adapters = ADAPTERS if "random_lora" in chosen else ADAPTERS[:1]
    return control_points((1, 2), fit, adapters, chosen, toy_reference=True)


def test_no_control_leaves_the_toy_reference() -> None:
    assert points() == [
        FitPoint(BASE, layer, d, 4, "topk", REFERENCE_SEED, "A") for d in FIT.d_sae for layer in (1, 2)
    ]


def test_a_shape_is_held_against_base_dictionaries_of_its_own_so_that_a_later_size_moves_nothing() -> None:
    """Of whatever else the grid asks for: a pair a layer and shape."""
    small, grown = (
        {p for p in points_of(replace(FIT, d_sae=sizes, k=k), "base")}
        for sizes, k in (((32,), (4,)), ((16, 32, 64), (4, 8)))
    )
    assert small < grown and len(grown) == 6 * len(small)


def test_what_deltas_are_held_against_starts_from_other_rows_than_any_dictionary_of_the_grid() -> None:
    """Of one seed and size they would start from the same ones, and match for that alone."""
    rows = torch.randn(500, 24, generator=torch.Generator().manual_seed(0))
    grid = {p.seed for t in trials(ADAPTERS, FIT) for p in grid_points(t, (1,), 8)}
    against = {p.seed for p in points("base")}
    start = {
        seed: start_rows(rows, measure(rows), 64, torch.Generator().manual_seed(seed))
        for seed in (*grid, *against)
    }
    chance = isotropic_max_cosine(64, 24)
    for seed, other in product(grid, against):
        assert max_cosine(start[seed], start[other]).value == pytest.approx(chance, abs=0.05)


def test_dictionaries_of_two_halves_match_each_other_no_better_than_chance_where_there_is_nothing_to_find() -> (
    None
):
    """Gaussian rows, calmly fitted: of one seed both would still be near the rows that they started from."""
    rows = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    halves = [
        p
        for p in points("split_half")
        if p.adapter == "r2" and p.documents != "all" and (p.layer, p.d_sae) == (1, 64)
    ]
    assert sorted(p.documents for p in halves) == ["A", "B"]

    def matched(seeds: tuple[int, int]) -> Measure:
        recipe = Recipe(64, 4, batch_tokens=256, steps=100)
        made = [
            fitted(Trainer(part, recipe, seed))
            for part, seed in zip((rows[:1000], rows[1000:]), seeds, strict=True)
        ]
        context = Context.of(inputs_of_rows(rows), Settings())
        rows_of, others = (living_rows(d) for d in made)
        null = np.stack(
            [best_cosines(drawn, others, absolute=True) for drawn in context.layer.drawn(len(rows_of))]
        )
        return mean_match(best_cosines(rows_of, others, absolute=True), np.ones(len(rows_of)), null, None)

    own, shared = matched((halves[0].seed, halves[1].seed)), matched((0, 0))
    assert own.value == pytest.approx(own.null, abs=0.02)
    assert shared.value > shared.null + 0.1, "or this could not tell"


def fitted(trainer: Trainer) -> Dictionary:
    while not trainer.done:
        trainer.step()
    return trainer.finish()


def inputs_of_rows(rows: torch.Tensor) -> LayerInputs:
    """A layer whose deltas and base activations are the same featureless rows."""
    reference = fitted(Trainer(rows, Recipe(64, 4, batch_tokens=256, steps=20), 5))
    x, docs = rows.numpy(), range(len(rows))
    return LayerInputs(x, x, x, x, docs, docs, reference)


def test_fast_is_the_random_adapter_and_the_base_control() -> None:
    found = points("fast")
    assert set(found) == set(points("random_lora", "base"))
    assert {(p.adapter, p.documents) for p in found} == {(BASE, "A"), (BASE, "B"), ("random", "all")}


def test_full_adds_a_second_seed_two_halves_and_two_featureless_fits_of_every_dictionary() -> None:
    added = set(points("full")) - set(points("fast"))
    assert {(p.seed, p.documents, p.control) for p in added} == {
        (1, "all", "none"), (1002, "A", "none"), (1003, "B", "none"), (0, "all", "gaussian"),
        (0, "all", "frozen_decoder"),
    }  # fmt: skip
    assert len(added) == 5 * 2 * len(FIT.d_sae)


@pytest.mark.parametrize("chosen", [("fast",), ("full",), ("gaussian",), ("frozen_decoder", "split_half")])
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_plan_counts_the_dictionaries_that_the_controls_fit(chosen: tuple[str, ...], seeds: int) -> None:
    fitted = [p for p in points(*chosen, seeds=seeds) if (p.adapter, p.documents) != (BASE, "A")]
    cfg = StudyConfig(fit=replace(FIT, seeds=seeds), diverge=DivergeConfig(controls=chosen))
    planned = control_dictionaries(cfg, layers=2, trials_count=2, randoms=1)
    assert sum(planned.values()) == len(fitted)
    assert {"gaussian", "frozen_decoder"} & cfg.diverge.chosen <= set(planned)


def test_siblings_of_the_references_own_release_are_not_fitted_again() -> None:
    layers, chosen = (1, 2), DivergeConfig(controls=("base",)).chosen
    fitted = control_points(layers, FIT, ADAPTERS[:1], chosen, toy_reference=False, siblings=False)
    assert {p.seed for p in fitted} == {CONTROL_SEED} and len(fitted) == len(layers) * len(FIT.d_sae)
    cfg = StudyConfig(fit=FIT, diverge=DivergeConfig(controls=("base",)))
    planned = control_dictionaries(cfg, len(layers), trials_count=2, randoms=1, siblings=False)
    assert planned == {"base": len(fitted)}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_every_seed_has_another_as_its_ceiling_and_is_the_ceiling_of_one(seeds: int) -> None:
    trial = trials(ADAPTERS, FIT)[0]
    made = StudyState(by_tune=False, grid={trial: [_fitted(p) for p in grid_points(trial, (1,), seeds)]})
    made.controls = {p: _fitted(p) for p in points("full") if p.seed != 1}
    specs = [_spec(made, f, ADAPTERS[0], HeldAgainst("toy reference", "reference")) for f in made.grid[trial]]
    assert all(s.control("second") not in (None, s.dictionary) for s in specs)
    assert sorted(s.control("second") or "" for s in specs) == sorted(s.dictionary for s in specs)
    assert {(s.control("half_a"), s.control("half_b")) for s in specs} == {
        tuple(str(p) for p in points("split_half") if p.layer == 1 and p.d_sae == 32 and p.adapter == "r2")
    }


def _fitted(p: FitPoint) -> FittedDictionary:
    return FittedDictionary(p, str(p), "", {}, (), (), 100)


def test_a_study_with_seeds_of_its_own_fits_no_further_one() -> None:
    assert points("seeds", seeds=2) == points()


def test_three_base_dictionaries_stand_beside_the_reference_on_documents_that_it_never_saw() -> None:
    trial = trials(ADAPTERS, FIT)[0]
    made = StudyState(by_tune=False, grid={trial: [_fitted(p) for p in grid_points(trial, (1,), 2)]})
    made.controls = {p: _fitted(p) for p in points("fast")}
    spec = _spec(made, made.grid[trial][0], ADAPTERS[0], HeldAgainst("toy reference", "reference"))
    beside = [p for p in points("base") if (p.layer, p.d_sae, p.documents) == (1, 32, "B")]
    assert len(beside) == 3 and len({p.seed for p in beside}) == 3
    assert {spec.control("base_control"), *spec.siblings} == {str(p) for p in beside}
    assert not set(spec.siblings) & set(spec.dictionaries.values()), "no other figure depends on them"
    random = [p for p in points("random_lora") if (p.adapter, p.layer, p.d_sae) == ("random", 1, 32)]
    assert len(random) == 2, "a second seed decides what repeats of it too"
    another = AdapterRef("random-r4", "", "other", 4, 4.0, kind="random")
    more = control_points((1,), FIT, (*ADAPTERS, another), frozenset({"random_lora"}), toy_reference=False)
    made.controls = {p: _fitted(p) for p in more}
    made.harvest = Harvest("", (*ADAPTERS, another), ())
    randoms = _spec(made, made.grid[trial][0], ADAPTERS[0], HeldAgainst("toy reference", "reference")).randoms
    assert [(r.source, len(r.others)) for r in randoms] == [("", 1), ("other", 1)], "one of each"
