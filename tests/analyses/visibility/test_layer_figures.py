"""The rule at one layer, and over all layers at once."""

from dataclasses import replace

import numpy as np
import pytest

from deltasae_ray.analyses.visibility.count_figures import Counts
from deltasae_ray.analyses.visibility.figures import CellVisibility
from deltasae_ray.analyses.visibility.layer_figures import (
    Sight,
    difference,
    disagreement,
    label,
    mean_of,
    measures,
)
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.visibility.answer import Visibility
from deltasae_ray.metrics.visibility.leading import DirectionVisibility
from deltasae_ray.metrics.visibility.resampled import Draw
from tests.analyses.visibility.made import cell, latents, sight


@pytest.mark.parametrize(
    ("not_visible", "visible", "right"),
    [
        (0, 60, "VISIBLE"),
        (0, 12, "INCONCLUSIVE"),
        (50, 10, "NOT VISIBLE"),
        (30, 30, "PARTLY VISIBLE"),
        (5, 4, "INCONCLUSIVE"),
        (6, 54, "INCONCLUSIVE"),
    ],
)
def test_the_interval_of_the_share_decides(not_visible: int, visible: int, right: str) -> None:
    found, share, reason = label(sight(not_visible, visible), 1)
    assert found == right and bool(reason) == (right == "INCONCLUSIVE")
    assert share.value == pytest.approx(not_visible / (not_visible + visible))


def test_latents_that_base_dictionaries_resemble_widen_the_interval_and_decide_nothing() -> None:
    sure, unsure = label(sight(0, 60), 1), label(sight(0, 60, unsure=20), 1)
    assert sure[0] == "VISIBLE" and unsure[0] == "INCONCLUSIVE"


def test_the_reason_names_how_many_latents_decide_or_that_none_would() -> None:
    assert "some 40 judged latents would decide it" in label(sight(0, 20), 1)[2]
    assert "more latents would not decide it" in label(sight(0, 60, unsure=20), 1)[2]


def test_intervals_hold_over_layers_at_once() -> None:
    alone, many = label(sight(21, 14), 1)[1], label(sight(21, 14), 20)[1]
    assert alone.ci and many.ci and many.ci[0] < alone.ci[0] and alone.ci[1] < many.ci[1]
    found = measures({9: sight(21, 14), 12: sight(3, 30)})
    assert found[9]["not_visible_share"].ci == label(sight(21, 14), 2)[1].ci
    assert found[9]["visible_share"].value == pytest.approx(14 / 35)


@pytest.mark.parametrize(
    ("truth", "wrong"), [(0.5, "NOT VISIBLE"), (0.1, "VISIBLE"), (0.05, "PARTLY VISIBLE")]
)
def test_at_twenty_layers_at_most_one_study_in_twenty_has_a_layer_with_a_wrong_label(
    truth: float, wrong: str
) -> None:
    """The truth lies at the limit of the rule, where an error is likeliest; 60 latents a layer."""
    rng = np.random.default_rng(0)
    known = {k: label(sight(k, 60 - k), 20)[0] for k in range(61)}
    counts = rng.binomial(60, truth, size=(2000, 20))
    errors = np.vectorize({k: name == wrong for k, name in known.items()}.get)(counts).any(1)
    assert errors.mean() <= 0.05
    single = {k: label(sight(k, 60 - k), 1)[0] for k in range(61)}
    if truth == 0.5:
        alone = np.vectorize({k: name == wrong for k, name in single.items()}.get)(counts).any(1)
        assert alone.mean() > 0.2, "each layer by its own interval would err so often"


def test_texts_are_pooled_only_where_they_agree() -> None:
    alike = Sight(cell(10, 30, domain=(5, 15), kjv=(6, 14)))
    assert disagreement(alike.own) is None and alike.judged_on[0] == ""
    apart = Sight(cell(35, 45, domain=(36, 4), kjv=(2, 38)))
    assert disagreement(apart.own) == ("domain", "kjv")
    assert apart.judged_on[0] == "domain" and label(apart, 1)[0] == "NOT VISIBLE"
    few = Sight(cell(35, 45, domain=(36, 4), kjv=(0, 9)))
    assert disagreement(few.own) is None, "under ten latents a text says nothing"


def test_a_mean_over_random_adapters_reaches_over_all_draws() -> None:
    found = mean_of([Measure(0.2, ci=(0.1, 0.3), n=20), Measure(0.4, ci=(0.3, 0.5), n=30)])
    assert found.value == pytest.approx(0.3) and found.ci == (0.1, 0.5) and found.n == 50
    assert mean_of([undefined("dead")]).reason == "dead"


def test_a_difference_has_the_interval_of_two_independent_figures() -> None:
    found = difference(Measure(0.6, ci=(0.5, 0.7)), Measure(0.5, ci=(0.4, 0.6)))
    assert found.value == pytest.approx(0.1) and found.ci == pytest.approx((0.1 - 0.02**0.5, 0.1 + 0.02**0.5))


def test_a_narrow_change_is_judged_on_its_directions_though_few_latents_are_judged() -> None:
    directions = tuple(
        DirectionVisibility(0.3, label, 0.01)
        for label in ("visible", "not visible", "not visible", "not visible")
    )
    share = Measure(0.75, null=0.0, ceiling=1.0, ci=(0.625, 0.875), n=4)
    held = Visibility(
        "NOT VISIBLE", share, (0.1, 0.4), latents(2, 1), ("told",), directions, judged_on="directions"
    )
    seen = Sight(CellVisibility(held), (CellVisibility(held),))
    assert label(seen, 20) == ("NOT VISIBLE", share, "")
    found = measures({9: seen, 12: sight(3, 30)})[9]
    assert found["not_visible_share"].value == 0.75 and found["not_visible_share"].ci == (0.625, 0.875)
    assert found["visible_share"].value == 0.25 and found["visible_share"].ci is None
    assert found["not_visible_share_random_adapter"].value == 0.75


def test_other_seeds_widen_the_interval_of_all_and_of_each_text() -> None:
    alone = Counts(20, 0, 0, 40)
    apart = replace(alone, draws=(Draw(0.5, 20, 20, 60, 0.3), Draw(0.5, 32, 32, 60, 0.5)))
    one, other = alone.not_visible_share().ci, apart.not_visible_share().ci
    assert one and other and other[1] > one[1] + 0.1
    part = Counts(5, 0, 0, 10).within(apart)
    assert [x.low for x in part.draws] == [5, 8] and Counts(5, 0, 0, 10).within(alone).draws == ()
    assert apart.times(2).ends == (40, 40, 120) and apart.times(2).draws[1].low == 64
