"""Intervals over base dictionaries and seeds: exchangeable dictionaries are seldom told apart, and means are
covered."""

from itertools import combinations

import numpy as np
import pytest
import torch

from deltasae_ray.metrics.coding.dictionary_coding import Coder, make_coder
from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.missing_share import Comparison, compare_structure, over_control
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.over_dictionaries import beyond_others, over_dictionaries
from tests.metrics.visibility.worlds import Rows, fitted, units

REPETITIONS = 1000


def cells(
    rng: np.random.Generator, many: int, seeds: int, spread: tuple[float, float, float], mean: float = 0.0
) -> list[list[Measure]]:
    """Figures that dictionaries, seeds and documents move by these standard deviations."""
    by_dictionary, by_seed, by_document = spread
    documents = by_document * rng.standard_normal()
    values = mean + documents + by_dictionary * rng.standard_normal((many, 1))
    values = values + by_seed * rng.standard_normal((1, seeds))
    return [[Measure(v, ci=(v - 1.96 * by_document, v + 1.96 * by_document)) for v in row] for row in values]


@pytest.mark.parametrize("spread", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.2, 1.0), (0.0, 1.0, 0.3)])
@pytest.mark.parametrize(("many", "seeds"), [(3, 2), (5, 1)])
def test_the_mean_over_dictionaries_and_seeds_is_covered(
    many: int, seeds: int, spread: tuple[float, float, float]
) -> None:
    if seeds == 1:
        spread = (*spread[:1], 0.0, spread[2])
    rng = np.random.default_rng(0)
    found = [over_dictionaries(cells(rng, many, seeds, spread, 3.0)).ci for _ in range(REPETITIONS)]
    assert np.mean([ci is not None and ci[0] <= 3.0 <= ci[1] for ci in found]) >= 0.93


@pytest.mark.parametrize("many", [2, 3, 6])
def test_one_more_of_exchangeable_dictionaries_is_told_apart_in_a_twentieth(many: int) -> None:
    """Where its interval knows only documents, it is told apart almost always."""
    rng, apart, naive = np.random.default_rng(1), [], []
    for _ in range(REPETITIONS):
        made = np.array([[m.value for m in row] for row in cells(rng, many + 1, 2, (1.0, 0.3, 0.0))])
        gaps = made[0] - made[1:]
        found = beyond_others([[Measure(g, ci=(g - 0.1, g + 0.1)) for g in row] for row in gaps])
        assert found.ci is not None and found.null == 0.0
        apart.append(not found.ci[0] <= 0 <= found.ci[1])
        naive.append(abs(gaps[0, 0]) > 0.1)
    assert np.mean(apart) <= 0.07 and np.mean(naive) > 0.8


def test_a_reference_unlike_all_others_is_told_apart_and_what_is_not_known_is_said() -> None:
    rng = np.random.default_rng(2)
    gaps = [[Measure(g, ci=(g - 0.1, g + 0.1)) for g in 2 + 0.05 * rng.standard_normal(2)] for _ in range(3)]
    found = beyond_others(gaps)
    assert found.ci is not None and found.ci[0] > 0 and found.n == 3 and not found.reason
    assert "one base dictionary" in beyond_others(gaps[:1]).reason and beyond_others(gaps[:1]).ci is None
    alone = beyond_others([row[:1] for row in gaps])
    assert alone.ci is not None and "one seed" in alone.reason
    assert over_dictionaries([[undefined("too narrow")], gaps[0][:1]]).reason == "too narrow"
    assert (
        over_dictionaries([[Measure(1.0).because("ci", "29 documents")], gaps[0][:1]]).reason
        == "29 documents"
    )


def exchangeable(sets: int, each: int) -> list[list[Comparison]]:
    """Missing shares against base dictionaries fitted to one world's base activations, a list a set."""
    made = []
    for number in range(sets):
        g = torch.Generator().manual_seed(number)
        line = Rows(4400, 40, g)
        known, new = units(48, 32, g), units(12, 32, g)
        base = 10 * line.codes(48, 4, (0.5, 1.5)) @ known + 0.1 * torch.randn(4400, 32, generator=g)
        atoms = torch.cat([known[:12], new])
        deltas = line.codes(24, 3, (0.5, 1.5)) @ atoms + 0.01 * torch.randn(4400, 32, generator=g)
        coder: Coder = make_coder(
            deltas[2800:],
            deltas[:2800],
            line.doc_ids[2800:],
            Moments.of(deltas[:2800]),
            Settings(k=3, code_tokens=1600, null_draws=3, bootstrap=200, seed=number),
        )
        own = coder.code(atoms)
        fits = [fitted(base[:2800], 50 * number + i, d_sae=64, k=4, steps=120) for i in range(each)]
        made.append([compare_structure(match_sizes(own, coder.code(x.W_dec[x.alive]), None)) for x in fits])
    return made


def told_apart(sets: list[list[Comparison]], others: int) -> tuple[int, int, int]:
    """Differences that exclude 0, those whose interval knows only documents do, and all."""
    apart = naive = count = 0
    for found in sets:
        for i, one in enumerate(found):
            rest = [x for j, x in enumerate(found) if j != i]
            for some in combinations(rest, others):
                gaps = [over_control(one, x) for x in some]
                ci, plain = beyond_others([[x] for x in gaps]).ci, gaps[0].ci
                assert ci is not None and plain is not None
                apart += not ci[0] <= 0 <= ci[1]
                naive += not plain[0] <= 0 <= plain[1]
                count += 1
    return apart, naive, count


@pytest.mark.prove
def test_fitted_base_dictionaries_are_told_apart_in_at_most_seven_of_a_hundred_differences() -> None:
    """50 worlds of five dictionaries each: 20 differences a world, every dictionary against every three
    others."""
    apart, naive, count = told_apart(exchangeable(50, 5), 3)
    told = f"{apart} of {count} differences exclude 0; {naive} by documents alone"
    assert count == 1000 and apart <= 70 < naive, told
