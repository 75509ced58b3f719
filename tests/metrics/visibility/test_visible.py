"""The decision on planted worlds, with dictionaries that are the truth but for an error; fitted ones are in
test_fitted.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import deltasae_ray as ds
from deltasae_ray.errors import GeometryError, PrecisionError
from tests.metrics.visibility.worlds import (
    Fitted,
    Planted,
    absorbed,
    changed,
    decided,
    dictionary_of,
    featureless,
    known_all,
    mixture,
    scaled,
)

SMALL = {"fit": 4000, "rows": 6000}
TINY = {"fit": 3000, "rows": 4500, "d": 96}


def share_held(found: ds.Visibility, world: Planted) -> bool:
    return found.features[0] <= world.share <= found.features[1]


@pytest.mark.parametrize(
    ("share", "label"), [(1.0, "VISIBLE"), (0.5, "PARTLY VISIBLE"), (0.0, "NOT VISIBLE")]
)
@pytest.mark.parametrize("dense", [0.0, 0.6])
def test_the_label_and_the_share_of_features_are_those_of_the_world(
    share: float, label: str, dense: float
) -> None:
    world = mixture(0, share=share, dense=dense, active=4, **TINY)
    found = decided(world, known_all(world, 0))
    assert found.label == label and share_held(found, world)
    assert found.share.value == pytest.approx(1 - share, abs=0.03) and found.share.n == 64
    held = {i for i, kept in enumerate(world.held) if kept}
    assert {x.index for x in found.named} == set(range(64)) - held, "latent i is feature i here"
    assert all(x.q is not None and x.q <= 0.05 for x in found.named)


def test_padding_moves_nothing_and_a_sign_is_no_difference() -> None:
    few, many = (mixture(1, share=0.75, active=4, padding=n, **TINY) for n in (48, 256))
    shares = [decided(w, known_all(w, 0)).share.value for w in (few, many)]
    assert shares[0] == pytest.approx(0.25, abs=0.03) and shares[1] == pytest.approx(shares[0], abs=0.03)
    found = known_all(few, 0)
    turned = Fitted(found.dictionary, found.second, negated(found.reference), found.base_dictionaries)
    assert decided(few, turned).share.value == shares[0]


def negated(dictionary: ds.Dictionary) -> ds.Dictionary:
    return replace(dictionary, W_dec=-dictionary.W_dec)


@pytest.mark.parametrize("rate", [0.0025, 0.0056, 0.018])
def test_a_rare_novel_feature_is_named_under_any_label(rate: float) -> None:
    world = changed(2, novel_rate=rate, **SMALL)
    found = decided(world, known_all(world, 0))
    assert [x.index for x in found.named] == [48] and found.named[0].scaling == "new"
    assert found.label in ("VISIBLE", "INCONCLUSIVE")


def test_a_change_of_base_features_names_none_and_classes_are_right() -> None:
    world = changed(3, novel_rate=0, **SMALL)
    found = decided(world, known_all(world, 0))
    assert found.label == "VISIBLE" and not found.named
    assert [x.scaling for x in found.latents if x.index < 48] == list(world.kinds)
    mixed = scaled(3, **SMALL)
    classes = {x.index: x.scaling for x in decided(mixed, known_all(mixed, 0)).latents}
    assert np.mean([classes.get(i) == kind for i, kind in enumerate(mixed.kinds)]) >= 0.95


@pytest.mark.parametrize("parents_held", [True, False])
def test_a_child_that_the_reference_holds_with_its_parent_is_not_missing(parents_held: bool) -> None:
    world = absorbed(4, parents_held=parents_held, **TINY)
    assert decided(world, known_all(world, 0)).label != "NOT VISIBLE"


def test_corpora_without_features_are_inconclusive_though_their_covariances_differ() -> None:
    world = featureless(5, **TINY)
    leading = [
        torch.linalg.svd(world.deltas[torch.from_numpy(world.corpora == c)], full_matrices=False)[2][:16]
        for c in "012"
    ]
    made = known_all(world, 0)
    own = dictionary_of(torch.cat(leading), world.deltas[: world.fit])
    found = decided(world, Fitted(own, (own,), made.reference, made.base_dictionaries))
    assert (
        found.label == "INCONCLUSIVE"
        and found.share.value is None
        and any("Gaussian" in x for x in found.reasons)
    )
    real = mixture(5, share=0.5, active=4, **TINY)
    texts = (real.doc_ids % 3).astype(str)
    apart = decided(real, known_all(real, 0), corpora=texts[real.fit :])
    assert apart.share.value == pytest.approx(decided(real, known_all(real, 0)).share.value, abs=0.02)


def test_a_reference_that_lacks_base_latents_too_is_called_weak_and_still_never_sees() -> None:
    world = mixture(6, share=0.5, active=4, base_holds="all", **TINY)
    found = decided(world, known_all(world, 0))
    assert (
        found.label == "PARTLY VISIBLE"
        and share_held(found, world)
        and any("weak" in x for x in found.reasons)
    )
    alone = decided(
        world, replace(known_all(world, 0), base_dictionaries=known_all(world, 0).base_dictionaries[:1])
    )
    assert alone.share.value == found.share.value and any("1 base dictionaries" in x for x in alone.reasons)


def test_latents_along_a_massive_direction_of_the_base_hide_no_others() -> None:
    """Sign flips leave such a latent where it is, and it is no example of what the reference cannot know."""
    world = mixture(10, share=0.5, active=4, **TINY)
    massive = F.normalize(world.reference[-1:], dim=1)
    loud = 200 * torch.rand(len(world.base), 1, generator=torch.Generator().manual_seed(1))
    near = F.normalize(massive + 0.3 * world.atoms[:4], dim=1)
    deltas = world.deltas + world.deltas @ world.atoms[:4].T @ (near - world.atoms[:4])
    atoms = torch.cat([near, world.atoms[4:]])
    changed_world = replace(world, base=world.base + loud * massive, deltas=deltas, atoms=atoms)
    found = decided(changed_world, known_all(changed_world, 0, off=0.05))
    held = {i for i, kept in enumerate(world.held) if kept} | {0, 1, 2, 3}
    assert {x.index for x in found.named} == set(range(64)) - held
    assert found.label == "PARTLY VISIBLE"


def test_latents_of_one_seed_are_not_judged_and_few_latents_give_no_label() -> None:
    world = mixture(7, share=0.5, active=4, **TINY)
    made, other = known_all(world, 0, junk=24), known_all(mixture(8, **TINY), 0)
    found = decided(world, made)
    assert {x.index for x in found.latents} <= set(range(64)), "junk differs between the seeds"
    strange = decided(world, Fitted(made.dictionary, other.second, made.reference, made.base_dictionaries))
    assert (
        strange.label == "INCONCLUSIVE"
        and strange.share.value is None
        and "10 are needed" in strange.reasons[-1]
    )


def test_rare_latents_cannot_be_judged() -> None:
    world = changed(9, novel_rate=0.0006, novel_energy=0.02, **SMALL)
    rare = [x for x in decided(world, known_all(world, 0)).latents if x.index == 48]
    assert all(x.label == "cannot be judged" and x.p is None for x in rare)


def test_without_tokens_the_answer_says_that_firing_is_undefined() -> None:
    world = mixture(0, share=1.0, active=4, **TINY)
    found = decided(world, known_all(world, 0), token_ids=None)
    assert found.label == "VISIBLE" and any("token_ids" in x for x in found.reasons)
    assert {x.label for x in found.latents} == {"visible"}
    asked = decided(world, known_all(world, 0))
    assert {x.label for x in asked.latents} == {"partly"}, "the directions are there, and fire by themselves"


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    world = mixture(0, share=0.5, active=4, d=32, features=16, padding=8, fit=400, rows=600)
    made = known_all(world, 0)
    with pytest.raises(GeometryError, match="encoder.*deltasae_ray.Dictionary"):
        decided(world, Fitted(made.dictionary, made.second, made.reference.W_dec, made.base_dictionaries))  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="base_dictionaries is empty"):
        decided(world, Fitted(made.dictionary, made.second, made.reference, ()))
    with pytest.raises(GeometryError, match="second is empty"):
        decided(world, made, second=())
    with pytest.raises(GeometryError, match="doc_ids has 3 entries"):
        decided(world, made, doc_ids=[0, 1, 2])
    with pytest.raises(GeometryError, match="same rows"):
        decided(world, made, training_base=world.base[:10])
    broken = world.deltas[: world.fit].clone()
    broken[3, 3] = torch.nan
    with pytest.raises(PrecisionError, match="training holds NaN"):
        decided(world, made, training=broken)
    with pytest.raises(GeometryError, match="d_model"):
        narrow = known_all(mixture(0, d=16, features=16, padding=8, fit=400, rows=600), 0)
        decided(world, Fitted(made.dictionary, narrow.second, made.reference, made.base_dictionaries))


def test_a_change_that_is_the_same_everywhere_is_inconclusive_and_ids_must_be_one_per_row() -> None:
    world = mixture(0, share=0.5, active=4, d=32, features=16, padding=16, fit=600, rows=900)
    made = known_all(world, 0)
    for deltas in (0 * world.deltas, 0 * world.deltas + 1):
        found = decided(replace(world, deltas=deltas), made)
        assert found.label == "INCONCLUSIVE" and "same on every row" in found.reasons[0] and not found.latents
    with pytest.raises(GeometryError, match="base is the same on every row"):
        decided(replace(world, base=0 * world.base), made)
    with pytest.raises(GeometryError, match="one entry per row"):
        decided(world, made, token_ids=np.zeros((300, 2), int))
    assert any("fewer than 8 documents" in x for x in decided(world, made, doc_ids=[0] * 300).reasons)


def test_the_same_seed_gives_the_same_answer() -> None:
    world = mixture(0, share=0.5, active=4, d=64, features=32, padding=32, **SMALL)
    made = known_all(world, 0)
    assert decided(world, made, seed=3) == decided(world, made, seed=3)
