"""The decision with fitted dictionaries, and its rates over fifty seeds (`make prove`)."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import deltasae_ray as ds
from tests.metrics.visibility.worlds import (
    Fitted,
    Planted,
    absorbed,
    changed,
    decided,
    featureless,
    fitted,
    known_all,
    mixture,
    module,
    scaled,
)

SEEDS = 50


def half_fitted(world: Planted, seed: int, *, d_sae: int = 192, steps: int = 400) -> Fitted:
    """Delta dictionaries as the product fits them; the truth but for an error on the side of the base."""
    own = [fitted(world.deltas[: world.fit], 100 * seed + i, d_sae=d_sae, steps=steps) for i in range(2)]
    known = known_all(world, seed)
    return Fitted(own[0], (own[1],), known.reference, known.base_dictionaries)


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


@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_latents_and_leading_directions_of_one_module_are_judged_at_any_rank(rank: int, share: float) -> None:
    world = module(0, rank=rank, share=share, d=96, fit=3000, rows=4500)
    found = decided(world, known_all(world, 0))
    labels = {x.label for x in found.latents}
    assert labels <= ({"visible", "partly"} if share else {"not visible"}) and len(found.latents) >= rank
    wrong = "not visible" if share else "visible"
    assert found.directions and wrong not in {x.label for x in found.directions}
    assert (found.label != "INCONCLUSIVE") == (rank == 16 and not share), (
        "sixteen of sixteen may still be a tenth"
    )


@pytest.mark.parametrize("energy", [0.5, 0.8])
def test_one_dominant_direction_without_features_hides_nothing(energy: float) -> None:
    for share, value in ((1.0, 0.0), (0.0, 1.0)):
        world = mixture(1, share=share, dense=energy, dense_rank=1, active=4, d=96, fit=3000, rows=4500)
        found = decided(world, known_all(world, 1))
        assert found.share.value == pytest.approx(value, abs=0.05)
        assert [round(x.variance, 1) for x in found.directions] == [energy] and found.directions[
            0
        ].label == "not visible"


def over_seeds(make: Callable[[int], tuple[Planted, Fitted]]) -> list[tuple[Planted, Fitted, ds.Visibility]]:
    made = ((*make(seed), seed) for seed in range(SEEDS))
    return [(world, found, decided(world, found, seed)) for world, found, seed in made]


@pytest.mark.prove
@pytest.mark.parametrize("make", [known_all, half_fitted])
@pytest.mark.parametrize("rate", [0.0025, 0.0056, 0.018])
def test_a_rare_novel_feature_is_named_in_nine_of_ten_seeds(make: Callable, rate: float) -> None:
    found = over_seeds(lambda seed: ((w := changed(seed, novel_rate=rate)), make(w, seed)))
    named = [leaning(v, made.dictionary, world.atoms[-1]) > 0.5 for world, made, v in found]
    others = [len(v.named) / max(1, v.share.n) for _, _, v in found]
    told = f"{make.__name__} {rate}: named {sum(named)} of {SEEDS}, share named {np.mean(others):.3f}"
    assert sum(named) >= 0.9 * SEEDS, told


@pytest.mark.prove
@pytest.mark.parametrize("make", [known_all, half_fitted])
@pytest.mark.parametrize("tied", [True, False])
def test_a_change_of_base_features_names_at_most_a_twentieth(make: Callable, tied: bool) -> None:
    found = over_seeds(lambda seed: ((w := changed(seed, novel_rate=0, tied=tied)), make(w, seed)))
    shares = [len(v.named) / max(1, v.share.n) for _, _, v in found]
    labels = Counter(v.label for _, _, v in found)
    told = f"{make.__name__} tied={tied}: share named {np.mean(shares):.4f}, labels {labels}"
    assert np.mean(shares) <= 0.05 and labels["VISIBLE"] >= 0.9 * SEEDS, told


@pytest.mark.prove
@pytest.mark.parametrize("make", [known_all, half_fitted])
@pytest.mark.parametrize("dense", [0.0, 0.4, 0.6])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_share_of_features_is_covered_in_nine_of_ten_seeds(
    make: Callable, dense: float, share: float
) -> None:
    found = over_seeds(lambda seed: ((w := mixture(seed, share=share, dense=dense, active=4)), make(w, seed)))
    covered = [v.features[0] <= world.share <= v.features[1] for world, _, v in found]
    labels = Counter(v.label for _, _, v in found)
    told = f"{make.__name__} dense {dense} share {share}: covered {sum(covered)} of {SEEDS}, labels {labels}"
    assert sum(covered) >= 0.9 * SEEDS, told
    assert share == 1 or labels["VISIBLE"] == 0, told
    assert labels["INCONCLUSIVE"] <= 0.1 * SEEDS, told


@pytest.mark.prove
@pytest.mark.parametrize("make", [known_all, half_fitted])
def test_what_must_never_happen_does_not(make: Callable) -> None:
    weak = over_seeds(lambda seed: ((w := mixture(seed, share=0.5, active=16)), make(w, seed)))
    labels = [Counter(v.label for _, _, v in weak)]
    assert labels[0]["VISIBLE"] == 0, labels
    for held in (True, False):
        found = over_seeds(lambda seed, held=held: ((w := absorbed(seed, parents_held=held)), make(w, seed)))
        labels.append(Counter(v.label for _, _, v in found))
        assert labels[-1]["NOT VISIBLE"] == 0, labels


@pytest.mark.prove
def test_corpora_without_features_are_always_inconclusive() -> None:
    found = over_seeds(lambda seed: ((w := featureless(seed)), half_fitted(w, seed)))
    labels = Counter(v.label for _, _, v in found)
    assert labels == {"INCONCLUSIVE": SEEDS}, labels


@pytest.mark.prove
@pytest.mark.parametrize("make", [known_all, half_fitted])
def test_classes_are_right_in_nineteen_of_twenty_features(make: Callable) -> None:
    right, asked = 0, 0
    for world, made, found in over_seeds(lambda seed: ((w := scaled(seed)), make(w, seed))):
        judged = [x for x in found.latents if x.label != "cannot be judged"]
        rows = F.normalize(made.dictionary.W_dec[[x.index for x in judged]], dim=1)
        best = (world.atoms @ rows.T).max(1)
        for kind, cosine, at in zip(world.kinds, best.values.tolist(), best.indices.tolist(), strict=True):
            asked += cosine > 0.7
            right += cosine > 0.7 and judged[at].scaling == kind
    told = f"{make.__name__}: {right} of {asked} classes right"
    assert right >= 0.95 * asked and asked >= 0.9 * SEEDS * 48, told
