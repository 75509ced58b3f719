"""What is compared has like sizes, and says them: dictionaries, controls and ceilings."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from deltasae_ray.metrics.coding.dictionary_coding import Coder, make_coder
from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.missing_share import compare_structure
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.moments import Moments
from tests.sae.planted import World, planted

K = 4


@pytest.fixture(scope="module")
def world() -> World:
    return planted(0, rows=6000)


@pytest.fixture(scope="module")
def coder(world: World) -> Coder:
    x = world.held_out
    return make_coder(
        x,
        world.x,
        np.arange(len(x)) // 10,
        Moments.of(world.x),
        Settings(k=K, code_tokens=512, null_draws=5, bootstrap=200, seed=0),
    )


def inside(world: World, count: int, seed: int) -> torch.Tensor:
    """Unrelated unit rows of the subspace that the planted atoms span."""
    basis = torch.linalg.svd(world.atoms, full_matrices=False)[2][:32]
    return normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) @ basis, dim=1)


def test_a_second_dictionary_is_cut_as_the_first_is(world: World, coder: Coder) -> None:
    """Of the same atoms as the first: held against a small reference, both are cut, and it misses nothing."""
    large = coder.code(torch.cat([world.atoms, inside(world, 64, 1)]))
    pair = match_sizes(large, coder.code(world.atoms[:20]), coder.code(large.atoms))
    assert pair.delta.used.size == pair.second.used.size == 80
    m = compare_structure(pair).missing
    assert m.value is not None and m.ceiling == pytest.approx(0, abs=1e-6)
    assert (
        "the 80 most used of the 128 atoms of the delta dictionary against the 20 atoms of the reference"
        in m.reason
    )
    assert (
        "the ceiling is that of the 80 most used of the 128 atoms of the second delta dictionary" in m.reason
    )


def test_a_control_has_the_size_of_the_reference_whatever_it_had(world: World, coder: Coder) -> None:
    """Four times as many unrelated atoms explain more; cut or not, they know nothing."""
    pair = match_sizes(coder.code(world.atoms), coder.code(inside(world, 64, 1)))
    control = coder.code(inside(world, 256, 2))
    matched = pair.against("control", control)
    assert matched.reference.used.size == pair.reference.used.size == 64
    assert control.structure().fvu < matched.reference.used.structure().fvu - 0.05
    m = compare_structure(matched).missing
    assert (
        m.value == pytest.approx(1, abs=0.05)
        and "the 64 most used of the 256 atoms of the control" in m.reason
    )


def test_a_reference_that_was_cut_is_held_beside_controls_of_that_size(world: World, coder: Coder) -> None:
    g = torch.Generator().manual_seed(2)
    truth = [torch.cat([world.atoms, normalize(torch.randn(n, 256, generator=g), dim=1)]) for n in (448, 960)]
    pair = match_sizes(coder.code(world.atoms), coder.code(truth[0]))
    control = pair.against("control", coder.code(truth[1]))
    assert [m.reference.used.size for m in (pair, control)] == [256, 256]
    assert all(compare_structure(m).missing.value == pytest.approx(0, abs=0.05) for m in (pair, control))


def test_a_cut_that_changes_what_the_second_dictionary_explains_leaves_no_ceiling(
    world: World, coder: Coder
) -> None:
    every = torch.cat([inside(world, 2000, 3), normalize(world.held_out - world.x.mean(0), dim=1)])
    m = compare_structure(
        match_sizes(coder.code(world.atoms), coder.code(world.atoms), coder.code(every))
    ).missing
    assert m.value == pytest.approx(0, abs=1e-6) and m.ceiling is None and m.kappa is None
    assert "no ceiling: the 64 most used of" in m.reason


def test_halves_may_be_asked_to_have_one_size(world: World, coder: Coder) -> None:
    pair = match_sizes(coder.code(world.atoms), coder.code(world.atoms[:50]), ratio=1)
    assert pair.delta.used.size == pair.reference.used.size == 50
