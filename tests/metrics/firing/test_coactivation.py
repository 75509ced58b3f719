"""Which reference latents delta latents fire with: at chance, where the answer is known, and where documents
decide."""

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

from deltasae_ray.metrics.firing.coactivation import _Pairs, coactivation, partners, phi
from deltasae_ray.metrics.firing.firings import FiringRows, Firings, fires
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import bootstrap_counts

DOCUMENTS, PLACES, LATENTS = 40, 12, 48


def codes(
    rng: np.random.Generator, documents: int, *, liking: float = 1.0, by_place: bool = False
) -> np.ndarray:
    """[documents · PLACES, LATENTS]: sparse activations; documents differ in which latents they prefer, or
    (by_place) places do."""
    likes = liking * rng.standard_normal((1 if by_place else documents, PLACES if by_place else 1, LATENTS))
    likes = np.broadcast_to(likes, (documents, PLACES, LATENTS)).reshape(-1, LATENTS)
    fired = rng.random(likes.shape) < stats.norm.cdf(likes - 1.6)
    return fired * rng.uniform(0.5, 1.5, likes.shape)


def firings(training: np.ndarray, evaluation: np.ndarray) -> Firings:
    return Firings(csr_array(training.astype(np.float32)), csr_array(evaluation.astype(np.float32)))


def made(rng: np.random.Generator, documents: int = DOCUMENTS, **how: float) -> Firings:
    return firings(codes(rng, 2 * documents, **how), codes(rng, documents, **how))


def measured(
    own: Firings, others: Firings, seed: int = 0, second: Firings | None = None, documents: int = DOCUMENTS
) -> Measure:
    rng = np.random.default_rng(seed)
    return coactivation(own, others, documents, bootstrap_counts(documents, 300, rng), rng, second=second)


def shuffled(of: Firings, order: np.ndarray) -> Firings:
    return Firings(csr_array(of.training[:, order]), csr_array(of.evaluation[:, order]))


def test_identical_codes_give_1_whatever_the_order_of_the_latents() -> None:
    rng = np.random.default_rng(0)
    own = made(rng)
    m = measured(own, shuffled(own, rng.permutation(LATENTS)))
    assert (
        m.value == pytest.approx(1)
        and m.ci == pytest.approx((1, 1))
        and abs(m.null or 0) < 0.05
        and m.p == pytest.approx(1 / 200)
    )


def test_independent_codes_meet_their_null() -> None:
    found = [measured(made(rng), made(rng)) for rng in map(np.random.default_rng, range(20))]
    assert np.mean([m.value for m in found]) == pytest.approx(np.mean([m.null for m in found]), abs=0.005)
    assert abs(np.mean([m.value for m in found])) < 0.01, (
        "the best of all latents, chosen on other rows, has no luck left"
    )


def test_p_is_uniform_where_documents_prefer_latents_of_either_side_independently() -> None:
    """Rows taken one by one would call this agreement: within a document a latent fires again and again."""
    p = []
    for i in range(100):
        rng = np.random.default_rng(i)
        p.append(measured(made(rng, 20, liking=2.0), made(rng, 20, liking=2.0), i, documents=20).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_latents_that_only_know_their_place_in_a_document_are_at_the_null() -> None:
    rng = np.random.default_rng(3)
    likes = 2 * rng.standard_normal((PLACES, LATENTS))

    def placed(documents: int) -> np.ndarray:
        return (
            (rng.random((documents, PLACES, LATENTS)) < stats.norm.cdf(likes - 1))
            .reshape(-1, LATENTS)
            .astype(float)
        )

    m = measured(*(firings(placed(2 * DOCUMENTS), placed(DOCUMENTS)) for _ in range(2)))
    assert m.value is not None and m.value > 0.2 and m.value == pytest.approx(m.null, abs=0.02) and m.p > 0.01


def test_the_center_is_the_mean_over_exchanges_and_moves_with_the_documents() -> None:
    rng = np.random.default_rng(5)
    likes = rng.standard_normal((PLACES, LATENTS))

    def placed(documents: int) -> np.ndarray:
        return (
            (rng.random((documents, PLACES, LATENTS)) < stats.norm.cdf(likes - 1))
            .reshape(-1, LATENTS)
            .astype(float)
        )

    own, others = (firings(placed(2 * DOCUMENTS), placed(DOCUMENTS)) for _ in range(2))
    pairs = _Pairs.of(own, others, DOCUMENTS)
    assert pairs is not None
    drawn = np.array([pairs.exchanged(rng.permutation(DOCUMENTS)) for _ in range(500)])
    center = pairs.by_exchange(np.ones((1, DOCUMENTS)))[0]
    assert center == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(500)) and center > 0.1, (
        "places alone make it"
    )
    counts = bootstrap_counts(DOCUMENTS, 3, rng)
    resampled = [np.repeat(np.arange(DOCUMENTS), c.astype(int)) for c in counts]
    for taken, moved in zip(resampled, pairs.by_exchange(counts), strict=True):
        rows = (taken[:, None] * PLACES + np.arange(PLACES)).ravel()
        small = (
            Firings(own.training, csr_array(own.evaluation[rows])),
            Firings(others.training, csr_array(others.evaluation[rows])),
        )
        again = _Pairs.of(*small, DOCUMENTS)
        assert again is not None and moved == pytest.approx(
            again.by_exchange(np.ones((1, DOCUMENTS)))[0], abs=0.01
        )


def test_half_shared_latents_lie_half_way_to_a_second_seed_that_shares_all() -> None:
    rng = np.random.default_rng(1)
    own, noise = made(rng), made(rng)
    half = np.arange(LATENTS) < LATENTS // 2
    others = firings(
        *(
            np.where(half, a.toarray(), b.toarray())
            for a, b in ((own.training, noise.training), (own.evaluation, noise.evaluation))
        )
    )
    m = measured(own, others, second=own)
    assert m.ceiling == pytest.approx(1) and m.kappa == pytest.approx(0.5, abs=0.1)
    assert (
        m.kappa_ci is not None
        and m.kappa_ci[0] < 0.5 < m.kappa_ci[1]
        and m.ci is not None
        and m.ci[1] - m.ci[0] < 0.3
    )


def test_the_interval_covers_the_value_on_all_documents() -> None:
    """Latents fire with a noisy copy; partners stay those of one training sample, as they do in a study."""
    rng = np.random.default_rng(5)
    training = codes(rng, 200)

    def noisy(x: np.ndarray) -> np.ndarray:
        return np.where(rng.random(x.shape) < 0.7, x, codes(rng, len(x) // PLACES))

    copy = noisy(training)

    def on(documents: int) -> Measure:
        x = codes(rng, documents)
        return measured(firings(training, x), firings(copy, noisy(x)), documents=documents)

    truth = on(3000).value
    hits = [m.ci is not None and m.ci[0] <= truth <= m.ci[1] for m in (on(60) for _ in range(100))]
    assert 0.90 <= np.mean(hits) <= 0.985


def test_phi_is_the_correlation_of_indicators_and_0_of_what_never_varies() -> None:
    a, b = (np.random.default_rng(i).random(500) < 0.3 for i in range(2))
    counts = (np.array([float(x)]) for x in ((a & b).sum(), a.sum(), b.sum()))
    assert phi(*counts, 500)[0] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert phi(np.array([3.0]), np.array([3.0]), np.array([500.0]), 500)[0] == 0


def test_blocks_do_not_change_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    own, others = (fires(csr_array(codes(rng, 20).astype(np.float32))) for _ in range(2))
    whole = partners(own, others)
    monkeypatch.setattr("deltasae_ray.metrics.firing.coactivation._BLOCK_NUMBERS", 100)
    np.testing.assert_array_equal(partners(own, others), whole)


def test_a_latent_that_fires_with_none_has_no_partner_and_a_dictionary_that_fires_nowhere_no_figure() -> None:
    own, others = np.zeros((6, 2), np.float32), np.zeros((6, 2), np.float32)
    own[:3, 0], own[4, 1], others[:3, 1] = 1, 1, 1
    assert partners(csr_array(own), csr_array(others)).tolist() == [1, -1]
    silent = firings(np.zeros((40, LATENTS)), np.zeros((DOCUMENTS * PLACES, LATENTS)))
    m = measured(silent, made(np.random.default_rng(0)))
    assert m.value is None and "fires on both" in m.reason


def test_few_documents_leave_no_interval_and_keep_p() -> None:
    rng = np.random.default_rng(0)
    own = made(rng, 10)
    m = measured(own, own, documents=10)
    assert (
        m.value == pytest.approx(1)
        and m.ci is None
        and "10 evaluation documents" in m.reason
        and m.p == pytest.approx(1 / 200)
    )


def test_rows_are_as_many_of_every_document_spread_over_it_and_short_documents_are_left_out() -> None:
    lengths = [20, 10, 3, 10, 40]
    documents = np.random.default_rng(0).permutation(np.repeat(np.arange(5), lengths))
    rows = FiringRows.of(1000, documents, 5, 50)
    assert rows.evaluation.shape == (4, 10) and rows.left_out == 1 and len(rows.training) == 200
    assert all(len(set(documents[of])) == 1 for of in rows.evaluation)
    assert len(np.unique(rows.evaluation)) == 40
    few = FiringRows.of(10, np.repeat(np.arange(200), 2), 200, 50)
    assert few.evaluation.shape == (200, 1) and few.left_out == 0
