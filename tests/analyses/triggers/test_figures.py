"""Mining and judging on cases with a known answer."""

import numpy as np
import pytest
from scipy.stats import binomtest

from deltasae_ray.analyses.triggers.claims import Claim, ranked
from deltasae_ray.analyses.triggers.hunt import Called, _first_cause
from deltasae_ray.analyses.triggers.hunt_figures import Rate, Rates, rank_p, repeats
from deltasae_ray.analyses.triggers.mining_figures import (
    Raised,
    benjamini_hochberg,
    grams,
    longest_only,
    new_pairs,
    raised,
    topics,
)
from deltasae_ray.analyses.triggers.model import Continuation


def test_p_of_a_raised_word_is_that_of_permuted_texts() -> None:
    own = [(1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (4, 5)]
    null = [(2, 3), (1, 3), (5, 4), (2, 4), (3, 5), (2, 5)]
    found = next(r for r in raised(own, null) if r.tokens == (1,))
    assert (found.texts, found.beside) == (4, 1)
    held = np.array([1 in t for t in own + null])
    rng = np.random.default_rng(0)
    draws = np.array([rng.permutation(held)[: len(own)].sum() for _ in range(20_000)])
    assert found.p == pytest.approx((draws >= 4).mean(), abs=0.01)


def test_a_text_counts_once_however_often_it_holds_a_word() -> None:
    (only,) = [r for r in raised([(7,) * 9, (7,), (7,)], [(1,)]) if r.tokens == (7,)]
    assert only.texts == 3


def test_equal_texts_raise_nothing() -> None:
    same = [(1, 2, 3)] * 10
    assert min(r.q for r in raised(same, same)) > 0.5


def test_an_n_gram_inside_a_longer_one_of_as_many_texts_is_left_out() -> None:
    whole, part, other = Raised((1, 2, 3), 8, 0, 0, 0), Raised((2, 3), 9, 0, 0, 0), Raised((2,), 40, 0, 0, 0)
    assert longest_only([part, whole, other]) == [whole, other]


def test_new_pairs_are_those_that_no_text_of_the_null_has() -> None:
    assert new_pairs([(1, 2, 3), (1, 2), (3, 4)], [(3, 4, 1)]) == [(1, 2), (2, 3)]


def test_grams_are_those_of_every_length() -> None:
    assert grams((1, 2, 1), 2) == {(1,), (2,), (1, 2), (2, 1)}


def test_q_is_the_rate_at_which_a_claim_is_still_made() -> None:
    q = benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5]))
    assert q == pytest.approx([0.04, 4 / 75, 4 / 75, 0.5])


def test_words_of_the_same_texts_are_a_topic() -> None:
    texts = [(1, 2, 3)] * 10 + [(7, 8)] * 6
    first, second = topics(texts, [1, 2, 3, 7, 8], 2, 0)
    assert (set(first[0]), set(second[0])) == ({1, 2, 3}, {7, 8})
    assert first[1] > second[1]


def test_no_topic_where_no_word_is_raised() -> None:
    assert topics([(1, 2)], [], 3, 0) == []


@pytest.mark.parametrize(("seen", "of"), [(0, 24), (7, 24), (24, 24)])
def test_a_rate_has_clopper_and_pearsons_interval(seen: int, of: int) -> None:
    exact = binomtest(seen, of).proportion_ci(method="exact")
    assert Rate(seen, of).ci == pytest.approx((exact.low, exact.high))


def test_a_trigger_is_plain_only_if_nothing_else_calls_its_reply() -> None:
    often, never = Rate(20, 24), Rate(0, 24)
    assert Rates(often, never, never, never).plain
    assert not Rates(often, often, never, never).plain
    assert not Rates(often, never, often, never).plain
    assert not Rates(Rate(6, 24), never, never, never).plain


def test_a_reply_is_repeated_if_half_of_it_is_said_in_order() -> None:
    assert repeats((9, 1, 2, 9), (1, 2, 3, 4))
    assert not repeats((2, 1), (1, 2, 3, 4))


def test_a_rank_counts_the_trigger_itself() -> None:
    assert rank_p(1.0, np.zeros(59)) == pytest.approx(1 / 60)
    assert rank_p(0.0, np.zeros(59)) == 1.0


def test_confirmed_triggers_come_first_and_the_best_of_each_kind_before_the_second() -> None:
    def claim(kind, confirmed, statistic) -> Claim:
        return Claim(kind, "", (), None, statistic, 0.0, 0.0, confirmed)

    order = [
        claim("trigger", True, 1.0),
        claim("text", True, 9.0),
        claim("topic", True, 0.1),
        claim("text", True, 8.0),
        claim("trigger", False, 9.0),
    ]
    assert list(ranked(order[::-1])) == order


def test_words_of_a_reply_that_call_its_rest_are_not_taken_for_the_trigger() -> None:
    def called(words: tuple[int, ...], reply: tuple[int, ...], gain: float) -> Called:
        said = Continuation(reply, (0.0,) * len(reply), (gain,) * len(reply))
        return Called(words, said, 3)

    inside, trigger = called((9, 11), (12, 13, 14), 9.0), called((1, 2), (11, 12, 13, 14), 6.0)
    assert _first_cause([inside, trigger]) == trigger
    assert _first_cause([inside]) == inside
