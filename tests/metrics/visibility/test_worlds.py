"""The decision with fitted dictionaries, and its rates over fifty seeds (`make prove`)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import deltasae_ray as ds
from tests.metrics.visibility.cases import BESIDE, CASES, Case, labels
from tests.metrics.visibility.repetitions import Kept, moved
from tests.metrics.visibility.worlds import changed, decided, half_fitted, known_all, mixture, module

SEEDS = 50


def leaning(found: ds.Visibility, dictionary: ds.Dictionary, atom: torch.Tensor) -> float:
    """Largest |cos| of a named latent's decoder row with a feature."""
    rows = F.normalize(dictionary.W_dec[[x.index for x in found.named]], dim=1)
    return float((rows @ atom).abs().max()) if len(rows) else 0.0


def test_a_rare_feature_that_fitted_latents_share_out_is_named_once() -> None:
    """With k above what is active, training splits it among latents that none of the seeds has in common."""
    world = changed(0, novel_rate=0.0056, d=64, base_features=64, features=24, fit=5000, rows=8000)
    made = half_fitted(world, 0, d_sae=64, steps=200)
    found = decided(world, made)
    assert len(found.named) == 1 and leaning(found, made.dictionary, world.atoms[-1]) > 0.5
    assert found.named[0].scaling == "new" and found.label in ("VISIBLE", "INCONCLUSIVE")


def test_a_fitted_dictionary_of_half_the_truth_under_a_dense_part_is_partly_visible() -> None:
    world = mixture(0, share=0.5, dense=0.6, active=4, d=96, features=48, fit=4000, rows=6000)
    found = decided(world, half_fitted(world, 0, d_sae=96, steps=250))
    assert found.label == "PARTLY VISIBLE" and found.features[0] <= 0.5 <= found.features[1]
    assert any("Gaussian" in x for x in found.reasons), "latents of the dense part are not judged"


@pytest.mark.parametrize(
    ("rank", "share", "label"),
    [(1, 1.0, "VISIBLE"), (1, 0.0, "NOT VISIBLE"), (2, 0.5, "PARTLY VISIBLE"), (16, 1.0, "VISIBLE")],
)
def test_one_module_is_answered_by_its_directions_at_any_rank(rank: int, share: float, label: str) -> None:
    world = module(0, rank=rank, share=share, d=64, fit=2000, rows=3000, base_features=96)
    found = decided(world, known_all(world, 0))
    assert found.label == label and found.judged_on == "directions"
    assert found.share.value == pytest.approx(1 - share, abs=0.01) and found.share.n == len(found.directions)
    assert len(found.directions) in (rank, rank - 1), "a written direction may hold next to nothing"
    assert sum(x.label == "not visible" for x in found.directions) == (~world.held).sum()
    written = {x.index: x.label for x in found.latents if x.index < rank}
    assert all((label == "not visible") != world.held[i] for i, label in written.items()) and written


@pytest.mark.parametrize("energy", [0.5, 0.8])
def test_one_dominant_direction_without_features_hides_nothing(energy: float) -> None:
    for share, value in ((1.0, 0.0), (0.0, 1.0)):
        world = mixture(1, share=share, dense=energy, dense_rank=1, active=4, d=96, fit=3000, rows=4500)
        found = decided(world, known_all(world, 1))
        assert found.share.value == pytest.approx(value, abs=0.05)
        assert [round(x.variance, 1) for x in found.directions] == [energy] and found.directions[
            0
        ].label == "not visible"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("repetitions"))


@pytest.mark.prove
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("made", ["known", "fitted"])
def test_what_is_asked_of_a_world_holds_over_fifty_seeds(kept: Kept, case: Case, made: str) -> None:
    found = [kept.get(case, made, seed) for seed in range(SEEDS)]
    assert case.holds(found), f"{case.asked}: {labels(found)}"
    if case.name in BESIDE:
        beside, reach = BESIDE[case.name]
        first = next(x for x in CASES if x.name == beside)
        for seed in range(SEEDS):
            kept.get(first, made, seed)
        gap = moved(kept, case, made)
        assert gap is not None and gap <= reach, f"f moves by {gap}"


def test_outcomes_are_found_again_and_told_apart_by_what_holds(tmp_path: Path) -> None:
    case = Case(
        "one module",
        partial(module, rank=2, d=64, fit=600, rows=900, base_features=64),
        "VISIBLE",
        lambda x: labels(x) == {"VISIBLE": len(x)},
    )
    found = Kept(tmp_path).get(case, "known", 0)
    again = Kept(tmp_path)
    assert again.all_of("one module", "known") == {0: found}
    assert case.holds([found]) and not case.holds([replace(found, label="NOT VISIBLE")])
