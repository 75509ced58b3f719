"""Figures over all seeds: their interval holds the variance between seeds, and the verdict is judged by
it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from deltasae_ray.analyses.geometry_figures import judge_missing
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.over_seeds import SHARED_CEILINGS, Cell, over_seeds, pooled
from tests.analyses.test_geometry import leaf

Z = float(stats.norm.ppf(0.975))


def of(values: list[float], reach: float | None = 0.05, **parts: object) -> dict[int, Measure]:
    """One measure per seed, with an interval over documents of ± reach."""
    made = (Measure(v, null=1.0, ci=None if reach is None else (v - reach, v + reach), n=77) for v in values)
    return {seed: replace(m, **parts) for seed, m in enumerate(made)}  # type: ignore[arg-type]


def one(values: list[float], name: str = "missing_share", **parts: object) -> Measure:
    return over_seeds(name, [Cell(("r4", 9), of(values, **parts))])[("r4", 9)]  # type: ignore[arg-type]


def test_seeds_that_agree_leave_the_interval_over_documents() -> None:
    assert one([0.5, 0.5]).ci == pytest.approx((0.45, 0.55))


def test_the_spread_of_seeds_enters_by_a_t_quantile_of_their_number() -> None:
    m = one([0.5, 0.6, 0.7])
    reach = np.sqrt(0.05**2 + stats.t.ppf(0.975, 2) ** 2 * 0.1**2 / 3)
    assert m.value == pytest.approx(0.6)
    assert m.ci == pytest.approx((0.6 - reach, 0.6 + reach))


def test_cells_lend_each_other_what_they_know_of_the_spread_and_none_gets_less_than_its_own() -> None:
    calm, wild = of([0.5, 0.51]), of([0.4, 0.6])
    found = over_seeds(
        "missing_share", [Cell(("r4", 9), calm), Cell(("r4", 12), wild), Cell(("r4", 15), of([0.5, 0.52]))]
    )
    mean = (0.01**2 + 0.2**2 + 0.02**2) / 2 / 3
    for place, values in (("r4", 9), (0.5, 0.51)), (("r4", 12), (0.4, 0.6)):
        variance = max(mean, float(np.var(values, ddof=1)))
        reach = np.sqrt(0.05**2 + stats.t.ppf(0.975, 3) ** 2 * variance / 2)
        assert found[place].ci == pytest.approx((np.mean(values) - reach, np.mean(values) + reach)), place


def test_an_asymmetric_interval_stays_asymmetric() -> None:
    m = one([0.5, 0.52], ci=(0.3, 0.55))
    assert m.ci is not None and m.value is not None
    assert m.value - m.ci[0] > m.ci[1] - m.value


def test_a_seed_without_a_value_leaves_none_to_the_mean() -> None:
    cell = Cell(("r4", 9), of([0.5]) | {1: undefined("no structure", null=1.0)})
    found = over_seeds("missing_share", [cell])[("r4", 9)]
    assert found.value is None and found.reason == "seed 1: no structure"


def test_one_seed_has_no_figure_over_seeds() -> None:
    assert over_seeds("missing_share", [Cell(("r4", 9), of([0.5]))]) == {}


def test_what_is_counted_over_latents_counts_their_luck_once_and_stays_within_its_scale() -> None:
    m = one([0.5, 0.52], "novel_share")
    reach = stats.t.ppf(0.975, 1) * 0.01
    assert m.ci == pytest.approx((0.51 - reach, 0.51 + reach)), "the latents' own interval does not enter"
    assert one([0.1, 0.9], "novel_share").ci == (0.0, 1.0)
    assert one([80.0, 60.0], "angle_decoder_k8", reach=None).ci == (0.0, 90.0)


def test_kappa_over_seeds_has_its_interval_and_none_where_ceilings_differ() -> None:
    parts = {"kappa": 0.4, "kappa_ci": (0.35, 0.45), "ceiling": 0.05}
    assert one([0.5, 0.6], **parts).kappa_ci == pytest.approx((0.35, 0.45))
    cell = of([0.5, 0.6], **parts)
    cell[1] = replace(cell[1], ceiling=0.2)
    apart = over_seeds("missing_share", [Cell(("r4", 9), cell)])[("r4", 9)]
    assert apart.kappa is None and "ceilings differ" in apart.reason and apart.value == pytest.approx(0.55)


@pytest.mark.parametrize("name", ["max_cosine", "max_cosine_weighted", "angle_decoder_k8"])
def test_kappa_whose_ceiling_is_of_two_seeds_has_no_interval_over_seeds_and_says_why(name: str) -> None:
    m = one([0.5, 0.6, 0.55], name, kappa=0.4, kappa_ci=(0.35, 0.45), ceiling=0.9)
    assert (
        m.kappa == pytest.approx(0.4)
        and m.kappa_ci is None
        and SHARED_CEILINGS in m.reason
        and m.ci is not None
    )


def kappa_covered(rng: np.random.Generator, ceiling_of: list[int], spread: float, cells: int) -> bool:
    """Whether cell 0's interval holds E[κ], κ = V(G)/V(the seed that is the ceiling), where V varies by
    `spread` between seeds, and documents move all seeds alike.

    Args:
        ceiling_of: of each seed, which seed is its ceiling.
    """
    made = []
    for c in range(cells):
        structure = 0.5 * np.exp(spread * rng.standard_normal(len(ceiling_of)))
        kappas = 0.3 * np.exp(0.01 * rng.standard_normal()) / structure[ceiling_of]
        figures = [
            Measure(
                0.4, null=1.0, ceiling=0.0, kappa=k, kappa_ci=(k * (1 - Z * 0.01), k * (1 + Z * 0.01)), n=77
            )
            for k in kappas
        ]
        made.append(Cell((c,), dict(enumerate(figures))))
    found = over_seeds("missing_share", made)[(0,)].kappa_ci
    assert found is not None
    return found[0] <= 0.6 * np.exp(spread**2 / 2) <= found[1]


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_the_interval_of_kappa_over_seeds_covers_where_every_seed_is_the_ceiling_once(seeds: int) -> None:
    rng, ring = np.random.default_rng(seeds), [*range(1, seeds), 0]
    assert 0.93 <= np.mean([kappa_covered(rng, ring, 0.04, 6) for _ in range(600)]) <= 0.99


def test_with_one_seed_as_the_ceiling_of_all_others_it_would_not() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([kappa_covered(rng, [1, 0, 0, 0], 0.04, 6) for _ in range(600)]) < 0.85


def test_only_what_a_dictionary_enters_has_a_figure_over_seeds() -> None:
    assert (
        pooled("missing_share_no_top3_token_mean") and pooled("angle_decoder_k16") and pooled("novel_share")
    )
    assert not pooled("angle_pca_k16") and not pooled("mean_share") and not pooled("missing_share_seeds")


def test_the_missing_share_is_judged_by_the_interval_that_holds_the_seeds() -> None:
    sure = leaf(0.0, 0.2)
    assert judge_missing(sure).label == "VISIBLE"
    wide = replace(
        sure, measures={**sure.measures, "missing_share_seeds": Measure(0.15, null=1.0, ci=(-0.4, 0.7), n=77)}
    )
    found = judge_missing(wide)
    assert found.label == "INCONCLUSIVE" and "fit more of them" in found.reason
    assert found.measure.value == 0.15


def covered(rng: np.random.Generator, seeds: int, spread: float, cells: int) -> bool:
    """Whether cell 0's interval holds 0.5, where documents err by .02 in all seeds alike and seeds by
    `spread`."""
    made = []
    for c in range(cells):
        document, own = 0.02 * rng.standard_normal(), spread * np.exp(0.5 * rng.standard_normal())
        made.append(Cell((c,), of(list(0.5 + document + own * rng.standard_normal(seeds)), reach=Z * 0.02)))
    ci = over_seeds("missing_share", made)[(0,)].ci
    assert ci is not None
    return ci[0] <= 0.5 <= ci[1]


@pytest.mark.parametrize(("seeds", "cells"), [(2, 6), (3, 1)])
def test_the_interval_covers_where_seeds_differ_as_much_as_documents(seeds: int, cells: int) -> None:
    rng = np.random.default_rng(seeds)
    assert np.mean([covered(rng, seeds, 0.03, cells) for _ in range(400)]) >= 0.93
