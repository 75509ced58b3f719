"""Intervals, p-values and corrections."""

import numpy as np
import pytest
from scipy import stats

from deltasae_ray.analyses.ranks import RankFigure, depth_statement, rank_statement
from deltasae_ray.metrics.ratios import Ratio, difference
from deltasae_ray.metrics.statistics import (
    bootstrap_counts,
    comparable,
    document_codes,
    document_sums,
    draws_p,
    equivalence_p,
    jackknife_interval,
    kappa,
    permutation_p,
    trend_p,
    welch_p,
)

RNG = np.random.default_rng(0)


def test_documents_are_numbered_in_order_of_appearance_and_summed() -> None:
    codes, n = document_codes(["b", "a", "b"])
    assert list(codes) == [0, 1, 0] and n == 2
    np.testing.assert_allclose(document_sums(np.array([[1.0], [2.0], [4.0]]), codes, n), [[5], [2]])


def test_duplicated_tokens_do_not_shrink_a_bootstrap_interval() -> None:
    codes = np.repeat(np.arange(40), 10)
    left, total = RNG.exponential(size=400), np.ones(400)
    counts = bootstrap_counts(40, 500, np.random.default_rng(0))
    once = Ratio.share(left, total, codes, 40).measure(counts)
    twice = Ratio.share(np.tile(left, 2), np.tile(total, 2), np.tile(codes, 2), 40).measure(counts)
    assert twice.ci == pytest.approx(once.ci)
    assert twice.value == pytest.approx(once.value)


def test_fewer_than_30_documents_have_no_interval() -> None:
    ratio = Ratio.share(np.ones(29), np.full(29, 2.0), np.arange(29), 29)
    m = ratio.measure(bootstrap_counts(29, 100, RNG))
    assert m.value == 0.5 and m.ci is None and "29 evaluation documents" in m.reason


def test_no_energy_is_undefined_not_nan() -> None:
    m = Ratio.share(np.zeros(40), np.zeros(40), np.arange(40), 40).measure(bootstrap_counts(40, 100, RNG))
    assert m.value is None and m.reason


def test_a_paired_difference_knows_its_direction() -> None:
    codes, counts = np.arange(50), bootstrap_counts(50, 500, np.random.default_rng(0))
    low, high = (Ratio.share(RNG.uniform(a, a + 0.2, 50), np.ones(50), codes, 50) for a in (0.2, 0.5))
    assert difference(low, [high], counts).ci[0] > 0.2
    assert difference(high, [low], counts).p > 0.99


def test_the_draws_of_a_null_enter_interval_and_p_of_a_gain_and_one_alone_gives_no_p() -> None:
    """Five draws that differ by more than the gain: over documents it is sure, over the null it is not."""
    codes, counts = np.arange(50), bootstrap_counts(50, 500, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    own, *null = (
        Ratio.share(rng.uniform(a, a + 0.02, 50), np.ones(50), codes, 50)
        for a in (0.50, 0.45, 0.48, 0.53, 0.56, 0.58)
    )
    narrow, wide = difference(own, null[4:], counts), difference(own, null, counts)
    assert narrow.p < 0.01 and narrow.ci[1] - narrow.ci[0] < 0.01
    assert wide.p > 0.05 and wide.ci[0] < 0 < wide.value < wide.ci[1]
    alone = difference(own, null[4:], counts, one_of_many="the dictionary")
    assert (
        alone.p is None
        and "p undefined: the dictionary is one of many" in alone.reason
        and alone.ci is not None
    )


def test_permutation_p_is_uniform_under_the_null_with_ties() -> None:
    rng = np.random.default_rng(1)
    p = [
        permutation_p(float(rng.integers(5)), rng.integers(5, size=99).astype(float), "greater", rng)
        for _ in range(400)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert permutation_p(10.0, np.zeros(99), "greater", rng) == 0.01
    assert permutation_p(-10.0, np.zeros(99), "less", rng) == 0.01


def test_p_from_five_draws_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(2)
    for tail in ("greater", "less", "two-sided"):
        p = [draws_p(rng.normal(), rng.normal(size=5), tail) for _ in range(500)]
        assert stats.kstest(p, "uniform").pvalue > 0.01
    assert draws_p(1.0, np.zeros(5), "greater") == 0.0
    assert draws_p(0.0, np.zeros(5), "greater") == 1.0


def test_welch_agrees_with_scipy() -> None:
    a, b = RNG.normal(size=20), 2 * RNG.normal(size=35) + 0.4
    for tail in ("greater", "less"):
        assert welch_p(a, b, tail) == pytest.approx(
            stats.ttest_ind(a, b, equal_var=False, alternative=tail).pvalue
        )


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = RNG.normal(size=40)
    deleted = np.array([np.delete(x, i).mean() for i in range(40)])
    interval, se = jackknife_interval(float(x.mean()), deleted)
    assert se == pytest.approx(x.std(ddof=1) / np.sqrt(40))
    assert interval == pytest.approx(stats.t.interval(0.95, 39, x.mean(), se))


def test_kappas_are_compared_only_where_their_ceilings_are_within_a_tenth_of_the_scale() -> None:
    assert comparable([0.10, 0.15, 0.20]) and comparable([])
    assert not comparable([0.05, 0.16])
    assert comparable([20.0, 28.0], scale=90) and not comparable([20.0, 30.0], scale=90)


def test_kappa_is_undefined_where_ceiling_and_null_are_close() -> None:
    assert kappa(0.5, 0.2, 0.8, 0.01, "greater")[0] == pytest.approx(0.5)
    value, reason = kappa(0.5, 0.49, 0.50, 0.004, "greater")
    assert value is None and "5 standard errors" in reason
    assert kappa(30.0, 60.0, 20.0, 1.0, "less")[0] == pytest.approx(0.75)
    worse, reason = kappa(
        0.27, 0.65, 0.52, 0.01, "greater"
    )  # two seeds agree less than chance does: no place between them
    assert worse is None and "better than the null" in reason
    assert kappa(0.5, None, 0.8, 0.01, "greater") == (None, "")


def test_equivalence_needs_evidence_and_not_its_absence() -> None:
    a, b = 0.5 + 0.01 * RNG.normal(size=6), 0.5 + 0.01 * RNG.normal(size=6)
    assert equivalence_p(a, b, 0.1) < 0.01
    assert equivalence_p(a, b + 0.2, 0.1) > 0.9
    assert equivalence_p(a[:1], b, 0.1) == 1.0
    assert equivalence_p(0.5 + RNG.normal(size=3), 0.5 + RNG.normal(size=3), 0.1) > 0.05


def test_a_trend_is_found_in_its_direction_only() -> None:
    x, y = [4, 4, 8, 8, 16, 16, 32, 32], [1, 1.1, 2, 2.1, 3, 3.2, 4, 4.1]
    rng = np.random.default_rng(0)
    assert trend_p(x, y, rng, draws=999) < 0.01
    assert trend_p(x, y[::-1], rng, draws=999) > 0.9


def test_nothing_is_said_about_rank_with_one_seed_per_rank() -> None:
    one = [RankFigure(r, 0, 0.1 * r) for r in (4, 8, 16)]
    assert "no claim about rank" in rank_statement("missing_share", one)
    two = [RankFigure(r, s, 0.05 * np.log2(r) + 0.001 * s) for r in (4, 8, 16, 32) for s in (0, 1)]
    assert "rises with rank" in rank_statement("missing_share", two)
    flat = [RankFigure(r, s, 0.5 + 0.001 * s) for r in (4, 8, 16, 32) for s in (0, 1)]
    assert "stable across ranks" in rank_statement("missing_share", flat)
    assert "one rank" in rank_statement("missing_share", [f for f in two if f.rank == 4])


def test_blocks_of_a_unit_are_shuffled_as_one() -> None:
    """Six layers that say the same of an adapter are one observation of it, not six: the best of 4! orders
    has p uniform below 1/24."""
    x, y = [4, 8, 16, 32], np.arange(4.0)
    for blocks in (y, np.tile(y[:, None], 6)):
        p = [trend_p(x, blocks, np.random.default_rng(seed), draws=199) for seed in range(40)]
        assert np.mean(p) == pytest.approx(1 / 48, abs=0.01)


@pytest.mark.prove
def test_a_trend_of_nothing_has_uniform_p() -> None:
    p = []
    for i in range(200):
        rng = np.random.default_rng(i)
        p.append(trend_p(np.repeat([4, 8, 16, 32], 3), rng.normal(size=(12, 4)), rng, draws=199))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_an_adapter_counts_once_however_many_layers_it_has() -> None:
    def figures(slope: float) -> list[RankFigure]:
        return [
            RankFigure(r, s, slope * np.log2(r) + 0.01 * s + layer, layer)
            for r in (4, 8, 16, 32)
            for s in (0, 1)
            for layer in (5, 9)
        ]

    assert "rises with rank" in rank_statement("k", figures(0.5))
    assert "falls with rank" in rank_statement("k", figures(-0.5))
    assert "stable across ranks" in rank_statement("k", figures(0.0))
    assert "no claim" in rank_statement("k", figures(0.5)[:-1]), "one value is missing"


def test_depth_is_judged_with_enough_layers_only() -> None:
    deep = [RankFigure(r, 0, layer + 0.1 * r, layer) for r in (4, 16) for layer in (5, 10, 18, 22, 32, 38)]
    assert "rises with depth" in depth_statement("density", deep)
    assert depth_statement("density", [f for f in deep if f.layer < 20]) == ""
    rng = np.random.default_rng(3)
    assert "no trend" in depth_statement(
        "density", [RankFigure(4, 0, float(rng.normal()), layer) for layer in range(6)]
    )


def test_a_featureless_dictionary_is_no_better_than_its_null_more_often_than_p_says() -> None:
    """It is one draw more of the same: p of documents alone, or of the mean of the draws, would call half of
    them better."""
    codes, p = np.arange(60), []
    for i in range(400):
        rng = np.random.default_rng(i)
        hard = rng.uniform(0.5, 1.5, 60)  # documents, alike for all
        made = [
            Ratio.share(hard * (0.5 + rng.normal(0, 0.02)) + rng.normal(0, 0.01, 60), np.ones(60), codes, 60)
            for _ in range(6)
        ]
        p.append(difference(made[0], made[1:], bootstrap_counts(60, 300, rng)).p)
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.08
