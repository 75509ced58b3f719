"""What the missing share says by itself, and only where the pooled one agrees."""

import pytest

from deltasae_ray.analyses.geometry_figures import Figures, judge, judge_geometry, judge_missing, reached
from deltasae_ray.metrics.measure import Measure, undefined


def leaf(low: float, high: float, **others: Measure) -> Figures:
    missing = Measure((low + high) / 2, null=1.0, ci=(low, high), n=77)
    return Figures("r4", 12, 512, 8, "topk", 0, {"missing_share": missing, **others})


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (0.0, 0.29, "VISIBLE"),
        (0.2, 0.31, "PARTLY VISIBLE"),
        (0.05, 0.31, "INCONCLUSIVE"),
        (0.42, 0.68, "PARTLY VISIBLE"),
        (0.11, 0.96, "INCONCLUSIVE"),
        (0.84, 0.97, "INCONCLUSIVE"),
        (0.86, 1.1, "NOT VISIBLE"),
        (-0.1, 1.1, "INCONCLUSIVE"),
        (-0.66, -0.39, "INCONCLUSIVE"),
    ],
)
def test_the_interval_alone_decides(low: float, high: float, label: str) -> None:
    assert judge(Measure((low + high) / 2, ci=(low, high)))[0] == label


def test_an_interval_below_zero_asks_for_a_better_delta_dictionary() -> None:
    _, reason = judge(Measure(-0.51, ci=(-0.66, -0.39)))
    assert "below -0.05" in reason and "corpus.fit_tokens" in reason and "fit.k" in reason


def test_no_interval_is_inconclusive_with_its_reason() -> None:
    assert judge(undefined("no structure")) == ("INCONCLUSIVE", "no structure")
    assert (
        judge(Measure(0.5).because("ci", "interval undefined: 12 evaluation documents"))[0] == "INCONCLUSIVE"
    )


def test_a_label_needs_both_missing_shares() -> None:
    """Half the truth and featureless padding beside a large dense part once read VISIBLE by M alone."""
    alone = judge_geometry(leaf(0.1, 0.25))
    assert alone.label == "INCONCLUSIVE" and "was not measured" in alone.reason
    apart = judge_geometry(leaf(0.1, 0.25, pooled_missing_share=Measure(0.58, ci=(0.5, 0.66))))
    assert apart.label == "INCONCLUSIVE" and "M alone says VISIBLE" in apart.reason
    assert "PARTLY VISIBLE" in apart.reason
    both = judge_geometry(leaf(0.4, 0.5, pooled_missing_share=Measure(0.58, ci=(0.5, 0.66))))
    assert both.label == "PARTLY VISIBLE"


def test_texts_whose_missing_shares_lie_apart_have_no_label_together() -> None:
    both = leaf(0.4, 0.5, pooled_missing_share=Measure(0.58, ci=(0.5, 0.66)))
    alike = {"domain": Measure(0.5, ci=(0.4, 0.6)), "kjv": Measure(0.55, ci=(0.45, 0.7))}
    assert judge_geometry(both, alike).label == "PARTLY VISIBLE"
    unlike = alike | {"pydoc": Measure(-0.05, ci=(-0.2, 0.1)), "short": undefined("12 training rows")}
    found = judge_geometry(both, unlike)
    assert found.label == "INCONCLUSIVE" and "M of domain and of pydoc lie apart" in found.reason


def test_the_positive_control_is_what_the_reference_sees_at_best() -> None:
    found = reached(leaf(0.6, 0.7, missing_share_positive_control=Measure(0.5, ci=(0.45, 0.55))))
    assert found.value == pytest.approx(0.7) and found.ci == pytest.approx((0.6, 0.8))
    weak = reached(leaf(0.6, 0.7, missing_share_positive_control=Measure(0.9)))
    assert weak.value is None and "too weak" in weak.reason


def test_what_has_too_few_directions_is_judged_without_its_largest_coordinates() -> None:
    few = undefined("the deltas live in 2.4 directions (participation ratio), 4 are needed")
    found = judge_missing(leaf(0, 1, missing_share=few, missing_share_no_top3=Measure(0.9, ci=(0.87, 0.95))))
    assert found.label == "NOT VISIBLE" and "outside its three largest coordinates" in found.subject
    nothing = judge_missing(leaf(0, 1, missing_share=few))
    assert nothing.label == "INCONCLUSIVE" and "2.4 directions" in nothing.reason


def test_a_constant_shift_is_judged_by_itself_only_where_nothing_else_has_structure() -> None:
    shift = {"mean_share": Measure(0.97, ci=(0.96, 0.98)), "mean_missing_share": Measure(0.95, ci=(0.9, 1.0))}
    few = {"delta_participation_ratio": Measure(40.0)}
    found = judge_missing(leaf(0, 1, **few, missing_share=undefined("no structure"), **shift))
    assert found.label == "NOT VISIBLE" and "constant shift (97% of the change)" in found.subject
    untrained = undefined("the delta dictionary saw 6 firings per latent, 30 are needed")
    for hidden in ({"firings_per_latent": Measure(6.0)}, {"structure_delta": Measure(0.3, ci=(0.2, 0.4))}):
        unknown = judge_missing(leaf(0, 1, missing_share=untrained, **shift, **hidden))
        assert unknown.label == "INCONCLUSIVE" and "6 firings" in unknown.reason
