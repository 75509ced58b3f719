"""The missing share and its companions on planted dictionaries (acceptance tests 5, 6, 9, 11)."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.coding.missing_share import missing_share
from deltasae_ray.metrics.geometry.matching import max_cosine
from deltasae_ray.metrics.moments import Moments
from tests.metrics.worlds import dictionary_of
from tests.sae.planted import World, planted, rank_one

K = 4


@pytest.fixture(scope="module")
def world() -> World:
    return planted(0, rows=6000)


def rows_like(world: World, count: int, seed: int, *, inside: bool) -> torch.Tensor:
    """Unit rows, isotropic or inside the subspace that the planted atoms span."""
    g = torch.Generator().manual_seed(seed)
    if not inside:
        return normalize(torch.randn(count, world.atoms.shape[1], generator=g), dim=1)
    basis = torch.linalg.svd(world.atoms, full_matrices=False)[2][:32]
    return normalize(torch.randn(count, 32, generator=g) @ basis, dim=1)


def share(world: World, reference: torch.Tensor, **how: object) -> float:
    m = missing_share(world.held_out, world.atoms, reference, k=K, training=world.x, **how)
    assert m.value is not None, m.reason
    assert m.ci is not None and m.ci[0] <= m.value <= m.ci[1]
    return m.value


def test_a_reference_with_the_truth_misses_nothing(world: World) -> None:
    assert share(world, torch.cat([world.atoms, rows_like(world, 64, 1, inside=False)])) < 0.05
    assert share(world, -world.atoms) < 0.05  # a suppressed feature is the same feature


def test_energy_weights_find_the_truth_that_the_plain_mean_dilutes(world: World) -> None:
    # a dictionary twice as large as the truth: half of its latents hardly ever fire
    learned = dictionary_of(torch.cat([world.atoms, rows_like(world, 64, 2, inside=True)]), world.x, K)
    reference = torch.cat([world.atoms, rows_like(world, 64, 3, inside=False)])
    plain, weighted = (max_cosine(learned.W_dec, reference, weights=w).value for w in (None, learned.energy))
    assert weighted > 0.85
    assert plain < weighted - 0.1


def test_featureless_atoms_miss_everything(world: World) -> None:
    assert share(world, rows_like(world, 64, 1, inside=False)) == pytest.approx(1, abs=0.05)
    assert share(world, rows_like(world, 64, 1, inside=True)) == pytest.approx(1, abs=0.1)


def test_half_the_truth_misses_about_two_thirds(world: World) -> None:
    half = torch.cat([world.atoms[:32], rows_like(world, 32, 1, inside=True)])
    assert share(world, half) == pytest.approx(0.69, abs=0.06)


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(10))
def test_the_shares_hold_over_worlds(seed: int) -> None:
    world = planted(seed, rows=6000)
    assert share(world, world.atoms) < 0.05
    assert share(world, rows_like(world, 64, seed, inside=True)) == pytest.approx(1, abs=0.1)
    assert share(
        world, torch.cat([world.atoms[:32], rows_like(world, 32, seed, inside=True)])
    ) == pytest.approx(0.69, abs=0.06)


@pytest.mark.prove
def test_a_trained_dictionary_gives_the_same_shares(world: World) -> None:
    from tests.metrics.worlds import fitted

    learned = fitted(world.x, 0, d_sae=128, k=K, steps=1500)
    for reference, low, high in (
        (torch.cat([world.atoms, rows_like(world, 64, 1, inside=False)]), -0.05, 0.05),
        (rows_like(world, 128, 1, inside=False), 0.95, 1.05),
        (rows_like(world, 128, 1, inside=True), 0.9, 1.1),
        (torch.cat([world.atoms[:32], rows_like(world, 96, 1, inside=True)]), 0.63, 0.75),
    ):
        m = missing_share(world.held_out, learned.W_dec[learned.alive], reference, k=K, training=world.x)
        assert m.value is not None and low < m.value < high


def test_tokens_count_alike_when_asked(world: World) -> None:
    half = torch.cat([world.atoms[:32], rows_like(world, 32, 1, inside=True)])
    assert share(world, half, average="token") == pytest.approx(share(world, half), abs=0.05)


def test_a_second_dictionary_is_the_ceiling(world: World) -> None:
    m = missing_share(
        world.held_out, world.atoms, world.atoms[:32], k=K, training=world.x, second=world.atoms
    )
    assert m.ceiling == pytest.approx(0, abs=1e-6)
    assert m.null == 1.0
    assert m.kappa == pytest.approx(1 - m.value, abs=1e-6)


def test_a_rank_one_change_has_no_missing_share() -> None:
    for seed in range(5):
        deltas, v = rank_one(seed)
        g = torch.Generator().manual_seed(100 + seed)
        own, others = (normalize(torch.randn(n, 64, generator=g), dim=1) for n in (7, 63))
        m = missing_share(deltas, torch.cat([v[None], own]), torch.cat([v[None], others]), k=1)
        assert m.value is None and "directions" in m.reason, seed


def test_deltas_without_features_are_undefined() -> None:
    g = torch.Generator().manual_seed(0)
    deltas = torch.randn(4000, 64, generator=g) @ torch.randn(64, 64, generator=g) / 8
    rows = normalize(torch.randn(128, 64, generator=g), dim=1)
    m = missing_share(deltas[2000:], normalize(deltas[:128], dim=1), rows, k=K, training=deltas[:2000])
    assert m.value is None and "no structure" in m.reason


def test_scale_and_the_size_of_the_mean_change_nothing(world: World) -> None:
    half, shift = torch.cat([world.atoms[:32], rows_like(world, 32, 1, inside=True)]), world.x.mean(0)
    one = missing_share(world.held_out, world.atoms, half, k=K, training=world.x)
    other = missing_share(
        10 * world.held_out + 3 * shift, world.atoms, half, k=K, training=10 * world.x + 3 * shift
    )
    assert other.value == pytest.approx(one.value, abs=1e-4)
    assert other.ci == pytest.approx(one.ci, abs=1e-4)


def test_what_varies_along_the_mean_is_neither_missing_nor_explained(world: World) -> None:
    """Atoms that lean towards the mean, as fitted ones do, code as well as the true ones, and no better."""
    mean = normalize(world.x.mean(0, keepdim=True), dim=1)
    louder = torch.randn(len(world.held_out), 1, generator=torch.Generator().manual_seed(0))
    for held_out, dictionary in (
        (world.held_out, world.atoms - 0.3 * mean),
        (world.held_out + louder * mean, world.atoms),
    ):
        m = missing_share(held_out, dictionary, world.atoms, k=K, training=world.x)
        assert m.value == pytest.approx(0, abs=1e-3)


def test_a_much_larger_reference_is_cut_or_refused(world: World) -> None:
    kept = missing_share(
        world.held_out,
        world.atoms,
        torch.cat([world.atoms, rows_like(world, 448, 1, inside=False)]),
        k=K,
        training=world.x,
    )
    assert kept.value is not None and kept.value < 0.05
    assert "256 most used of the 512" in kept.reason
    # every token has an atom of its own: cutting to any number of atoms loses the rest
    memorised = normalize(world.held_out[:1024] - world.x.mean(0), dim=1)
    refused = missing_share(world.held_out[:1024], world.atoms[:16], memorised, k=K, training=world.x)
    assert refused.value is None and ("depend on size" in refused.reason or "structure" in refused.reason)


def test_documents_are_what_is_resampled(world: World) -> None:
    half = torch.cat([world.atoms[:32], rows_like(world, 32, 1, inside=True)])
    x = world.held_out[:600]
    docs = np.repeat(np.arange(60), 10)
    once = missing_share(x, world.atoms, half, k=K, doc_ids=docs, training=world.x)
    twice = missing_share(x.repeat(2, 1), world.atoms, half, k=K, doc_ids=np.tile(docs, 2), training=world.x)
    assert twice.ci == pytest.approx(once.ci, abs=2e-3)
    assert once.n == twice.n == 60
    few = missing_share(x[:200], world.atoms, half, k=K, doc_ids=docs[:200], training=world.x)
    assert few.value is not None and few.ci is None and "20 evaluation documents" in few.reason


def test_k_above_eight_is_refused(world: World) -> None:
    with pytest.raises(GeometryError, match="choose 1 to 8"):
        missing_share(world.held_out, world.atoms, world.atoms, k=9)


@pytest.mark.prove
def test_p_is_uniform_when_the_reference_is_a_flip_of_itself(world: World) -> None:
    """Type I error: a reference turned by one more random flip is exchangeable with its null."""
    spectrum = Moments.of(world.x).spectrum
    basis, reference = spectrum.vectors.float(), rows_like(world, 64, 5, inside=True)
    p = []
    for i in range(200):
        signs = torch.randint(0, 2, (len(basis),), generator=torch.Generator().manual_seed(i)) * 2.0 - 1
        turned = (reference @ basis * signs) @ basis.T
        m = missing_share(
            world.held_out[10 * i : 10 * i + 200],
            world.atoms,
            turned,
            k=K,
            training=world.x,
            bootstrap=100,
            seed=1000 + i,
        )
        assert m.p is not None
        p.append(m.p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
