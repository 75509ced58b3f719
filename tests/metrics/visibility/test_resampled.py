"""Intervals of the share of latents that are not visible: over latents, seeds and base dictionaries."""

import numpy as np
import pytest
from scipy import stats

from deltasae_ray.metrics.visibility.presence import Present
from deltasae_ray.metrics.visibility.resampled import (
    Draw,
    counted,
    draws_of,
    likely_shares,
    moved,
    share_interval,
)

ABSENT = np.linspace(0.1, 0.3, 50)


def present(*each: np.ndarray) -> Present:
    """Scores of the latents of some base dictionaries; rows are not looked at."""
    base = np.repeat(np.arange(len(each)), [len(x) for x in each])
    return Present(np.zeros((len(base), 1)), base, len(each), np.concatenate(each))  # type: ignore[arg-type]


ALIKE = present(*(np.linspace(0.9, 1.0, 40),) * 3)


def test_one_set_of_counts_has_the_interval_of_jeffreys() -> None:
    for low, high, n, layers in ((3, 5, 40, 1), (1, 1, 12, 20), (7, 7, 8, 3)):
        tail = 0.025 / layers
        wanted = stats.beta.ppf([tail, 1 - tail], [low + 0.5, high + 0.5], [n - low + 0.5, n - high + 0.5])
        assert share_interval(counted(low, high, n), layers) == pytest.approx(tuple(wanted), abs=1e-9)
    assert share_interval(counted(0, 0, 24))[0] == 0 and share_interval(counted(9, 9, 9))[1] == 1


def test_seeds_that_agree_add_nothing_and_those_that_differ_widen_the_interval() -> None:
    scores = np.where(np.arange(60) < 15, 0.2, 0.95)
    other = np.where(np.arange(60) < 30, 0.2, 0.95)
    alike = draws_of([scores, scores], ALIKE, ABSENT, np.ones(60), 0)
    assert [(x.low, x.high, x.n) for x in alike] == [(15, 15, 60)] and alike[0].weight == pytest.approx(1)
    apart = draws_of([scores, other], ALIKE, ABSENT, np.ones(60), 0)
    assert {x.low: round(x.weight, 9) for x in apart} == {15: 0.5, 30: 0.5}, "one of two is drawn"
    three = draws_of([scores, other, other], ALIKE, ABSENT, np.ones(60), 0)
    assert {x.low: round(9 * x.weight, 9) for x in three} == {15: 1, 22.5: 4, 30: 4}, "two of three"
    (low, high), (lower, higher) = share_interval(alike), share_interval(apart)
    assert lower > low - 0.02 and higher > high + 0.1
    assert likely_shares(apart) == (0.25, 0.5) and likely_shares(alike) == (0.25, 0.25)


def test_base_dictionaries_of_which_one_scores_low_leave_it_open_which_latents_are_missing() -> None:
    """Alone, that one leaves too few latents above them for the correction."""
    scores = np.where(np.arange(40) < 10, 0.35, 0.95)
    odd = np.append(0.34, np.linspace(0.9, 1, 39))
    some = draws_of([scores], present(ALIKE.scores[:40], odd), ABSENT, np.ones(40), 0)
    assert len(some) > 1 and sum(x.weight for x in some) == pytest.approx(1)
    assert {x.high for x in some} == {10} and min(x.low for x in some) == 0 and max(x.low for x in some) == 10
    assert share_interval(some)[0] < share_interval(counted(10, 10, 40))[0]


def test_many_dictionaries_are_drawn_at_random_and_a_base_without_latents_is_passed_over() -> None:
    scores = np.full(30, 0.95)
    many = present(*[ALIKE.scores[:40]] * 6)
    assert draws_of([scores] * 5, many, ABSENT, np.ones(30), 3) == draws_of(
        [scores] * 5, many, ABSENT, np.ones(30), 3
    )
    poor = present(ALIKE.scores[:40], np.zeros(0))
    assert [x.low for x in draws_of([scores], poor, ABSENT, np.ones(30), 0)] == [0]


def test_other_seeds_move_a_part_of_the_latents_as_they_move_all() -> None:
    draws = [Draw(0.5, 10, 10, 100, 0.1), Draw(0.5, 20, 30, 100, 0.2)]
    found = moved(2, 2, 20, draws, (10, 10, 100))
    assert [(x.low, x.high, x.n) for x in found] == [(2, 2, 20), (4, 6, 20)]
    assert moved(2, 3, 20, (), (0, 0, 0)) == counted(2, 3, 20)


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.94), (0.05, 0.93), (0.08, 0.88)])
def test_the_interval_covers_the_share_though_seeds_differ(spread: float, least: float) -> None:
    """The share of each seed lies about the true one; latents are a sample. Two seeds say little of how far
    others would lie."""
    rng, held, n, one = np.random.default_rng(0), [], 60, present(ALIKE.scores[:40])
    for _ in range(400):
        shares = np.clip(0.4 + spread * rng.standard_normal(2), 0, 1)
        places = rng.random(n)
        by_seed = [np.where(places < f, 0.2, 0.95) for f in shares]
        low, high = share_interval(draws_of(by_seed, one, ABSENT, np.ones(n), 0))
        held.append(low <= 0.4 <= high)
    assert np.mean(held) >= least, np.mean(held)
