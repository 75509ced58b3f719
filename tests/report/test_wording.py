"""Numbers and sentences of the page."""

import pytest

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.report.inputs import AdapterFacts
from deltasae_ray.report.notes import against_null, places
from deltasae_ray.report.wording import METRICS, describe, figure, seeds_per_rank, share
from tests.report.made import changed, make

ROW = DivergenceRow("r4", 9, 256, 8, "topk", 0, 4, 0, "", "missing_share", Measure(0.5))


def row(**changes: object) -> DivergenceRow:
    return changed(ROW, **changes)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"), (0.0, "0.00"), (0.55, "0.55"), (-0.4, "−0.40"), (0.0042, "0.004"), (3.14159, "3.14"),
        (61.04, "61.0"),
        (2380.4, "2,380"), (0.00001234, "1.2e−5"), (123456.0, "1.2e5"), (0.0099999999999, "0.01"),
        (1.0, "1.00"),
    ],
)  # fmt: skip
def test_figures_line_up_and_have_real_minus_signs(value: float | None, written: str):
    assert figure(value) == written


def test_shares_keep_their_percent_sign():
    assert [share(v) for v in (None, 0.0, 0.1234, 0.00002)] == [
        "–",
        "0.0\u00a0%",
        "12.3\u00a0%",
        "0.002\u00a0%",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"null": 1.0, "ci_low": 0.4, "ci_high": 1.1}, "at chance"),
        ({"null": 1.0, "ci_low": 0.4, "ci_high": 0.6}, "beyond chance"),
        (
            {"null": 1.0, "ci_low": 0.4, "ci_high": 0.6, "p": 0.2},
            "not to be told from chance",
        ),  # few null draws, which the interval does not know of
        ({"null": 1.0, "p": 0.01}, "beyond chance"),
        ({"null": 0.2, "ci_low": 0.4, "ci_high": 0.6}, "worse than chance"),
        ({"null": 1.0}, None),
        ({"ci_low": 0.4, "ci_high": 0.6}, None),
        ({"value": None, "null": 1.0, "reason": "x"}, None),
    ],
)
def test_how_a_missing_share_stands_to_its_null_of_1(changes: dict, expected: str | None):
    assert against_null(row(**changes)) == expected


def test_places_are_named_once_and_sizes_only_where_they_differ():
    rows = [row(), row(d_sae=512), row(layer=12), row(layer=12, d_sae=512), row(adapter="r16", d_sae=512)]
    assert places(rows) == "r4 layers 9, 12; r16 layer 9 (d_sae 512)"
    over = {
        row(metric="m_k16"): 16,
        row(metric="m_k4"): 4,
        row(metric="m", layer=12): 8,
        row(metric="m", layer=15): 8,
    }
    assert places(list(over), over) == "r4 layer 9 at k = 4, 16; r4 layers 12, 15 at k = 8"


def test_controls_do_not_count_as_adapter_seeds():
    assert seeds_per_rank(
        [AdapterFacts("r4", 4, 0), AdapterFacts("random", 4, 0, control=True), AdapterFacts("r8", 8, 0)]
    ) == {4: 1, 8: 1}


def test_no_wording_is_about_safety_and_each_fills_its_names():
    for metric in METRICS:
        words = describe(metric, make())
        for text in (words.label, words.definition, words.at_chance):
            assert "safe" not in text.lower()
            assert "{" not in text


def test_an_unknown_metric_is_called_by_its_own_name_and_a_variant_by_the_catalogue():
    assert describe("odd_figure", make()).label == "odd figure"
    assert "without the three coordinates" in describe("max_cosine_no_top3", make()).label


def test_the_base_control_is_told_with_its_recipe_where_the_reference_was_given():
    for key in ("controls", "matching"):
        assert (
            "by the grid's first recipe and not the reference's"
            in describe(key, make(reference_given=True)).definition
        )
        assert "not the reference's" not in describe(key, make()).definition
