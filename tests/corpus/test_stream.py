"""Windows of a corpus: every unit once, nearly equal, the same whatever order the units come in."""

from dataclasses import replace

import pytest

from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.stream import Stream, in_windows
from tests.fit.made import make_unit

UNITS = tuple(make_unit(index) for index in range(60))
"""40 for dictionary training and 20 for evaluation, of 36 tokens each."""


def stream(window_tokens: int = 200, seed: int = 0, units: tuple = UNITS) -> Stream:
    return in_windows(Corpus(units, ()), window_tokens, seed)


def names(part: Corpus) -> list[str]:
    return [u.name for u in part.units]


@pytest.mark.parametrize("window_tokens", [1, 36, 100, 200, 1439, 1440, 10_000])
def test_every_training_unit_is_in_one_window_and_windows_are_nearly_equal(window_tokens: int) -> None:
    found = stream(window_tokens)
    assert sorted(name for w in found.windows for name in names(w)) == sorted(
        u.name for u in UNITS if u.split == "fit"
    )
    assert sum(found.tokens) == 40 * 36 and max(found.tokens) - min(found.tokens) <= 36
    assert max(found.tokens) < window_tokens + 36


def test_windows_do_not_depend_on_the_order_of_the_text_but_on_the_seed() -> None:
    assert [names(w) for w in stream().windows] == [names(w) for w in stream(units=UNITS[::-1]).windows]
    assert [names(w) for w in stream().windows] != [names(w) for w in stream(seed=1).windows]


def test_what_stays_is_the_first_window_and_the_evaluation_split() -> None:
    found = stream()
    assert found.resident.of("fit") == found.windows[0].units and found.resident.of("eval") == Corpus(
        UNITS, ()
    ).of("eval")


def test_the_key_of_what_stays_names_every_window() -> None:
    keys = {
        stream().resident.key,
        stream(seed=1).resident.key,
        stream(window_tokens=10_000).resident.key,
        Corpus(UNITS, ()).key,
    }
    shorter = replace(stream(), windows=stream().windows[:-1])
    assert len(keys | {shorter.resident.key}) == 5
