"""One rule for what a mean max-cosine says, for the delta dictionary and for the base control, and the words
it is told in."""

from dataclasses import replace

import pytest
import torch

from deltasae_ray.analyses.divergence.figures import compare
from deltasae_ray.analyses.verdict import LeafFigures, verdict
from deltasae_ray.metrics.against_chance import (
    control_sentence,
    control_statement,
    matched,
    matching_sentence,
    standing_of,
)
from deltasae_ray.metrics.catalogue import metric
from deltasae_ray.metrics.geometry.matching import max_cosine
from deltasae_ray.metrics.inputs import LeafInputs
from deltasae_ray.metrics.measure import Measure, undefined
from tests.metrics.worlds import (
    CHANGED,
    SETTINGS,
    TOKENS,
    dictionary_of,
    fitted,
    half,
    inputs_of,
    sparse,
    units,
)


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.41, 0.45, 0.001, "beyond chance"),
        (0.41, 0.45, None, "beyond chance"),
        (
            0.41,
            0.45,
            0.2,
            "not to be told from chance",
        ),  # few draws of the null, of which the interval knows nothing
        (0.30, 0.45, 0.001, "not to be told from chance"),
        (0.30, 0.34, 0.001, "at chance"),  # significant, and too little to mean anything
        (0.26, 0.34, 0.5, "at chance"),
        (0.10, 0.20, 1.0, "worse than chance"),
        (0.10, 0.20, 0.4, "not to be told from chance"),
    ],
)
def test_the_whole_interval_decides_on_a_max_cosine(
    low: float, high: float, p: float | None, said: str
) -> None:
    assert standing_of(metric("max_cosine"), Measure((low + high) / 2, null=0.3, ci=(low, high), p=p)) == said


@pytest.mark.parametrize(
    ("name", "low", "high", "p", "said"),
    [
        ("missing_share", 0.5, 0.7, 0.001, "beyond chance"),  # less is more: its null is 1
        ("missing_share", 0.9, 1.1, 0.3, "at chance"),
        ("missing_share", 1.1, 1.3, 0.999, "worse than chance"),
        ("missing_share_no_top3", 1.1, 1.3, 0.999, "worse than chance"),
        ("monitor_r2", 1.1, 1.3, 0.001, "beyond chance"),
        ("monitor_r2", 0.1, 0.2, 1.0, "worse than chance"),
    ],
)
def test_a_figure_is_beyond_its_null_on_the_side_that_its_tail_names(
    name: str, low: float, high: float, p: float, said: str
) -> None:
    assert standing_of(metric(name), Measure((low + high) / 2, null=1.0, ci=(low, high), p=p)) == said


def test_p_tells_where_there_is_no_interval_and_nothing_where_there_is_neither() -> None:
    found = [
        standing_of(metric("missing_share"), Measure(0.5, null=1.0, p=p)) for p in (0.01, 0.5, 0.99, None)
    ]
    assert found == ["beyond chance", "at chance", "at chance", None], (
        "p adjusted for many tests end near 1, whatever they were"
    )


def test_what_has_no_interval_or_no_value_is_neither() -> None:
    assert matched(Measure(0.9, null=0.3)) == matched(undefined("dead")) == "not to be told from chance"


def test_nothing_is_called_aligned_by_the_isotropic_null_alone() -> None:
    high = Measure(0.43, null=0.0663, ci=(0.42, 0.44))
    for calibrated in (None, undefined("max_cosine was not measured")):
        said = matching_sentence(high, calibrated)
        assert ": aligned" not in said and "whether it is aligned cannot be said" in said
    known = matching_sentence(high, Measure(0.45, null=0.34, ci=(0.44, 0.46), p=0.001))
    assert (
        known.endswith("atoms that know only the deltas' covariance 0.340: aligned")
        and "cannot be said" not in known
    )


def test_what_atoms_of_the_same_covariance_reach_too_is_at_chance() -> None:
    published = Measure(0.30, null=0.12, ci=(0.29, 0.31))
    said = matching_sentence(published, Measure(0.30, null=0.34, ci=(0.29, 0.31)))
    assert said.endswith("at chance") and "above isotropic chance" in said


def test_an_untrained_decoder_against_a_random_reference_is_at_chance_and_what_was_not_measured_is_not_told() -> (
    None
):
    published = max_cosine(*(units(2048, torch.Generator().manual_seed(seed)) for seed in (0, 1)))
    assert matching_sentence(published).endswith("at chance")
    assert matching_sentence(undefined("not measured")) == ""


def test_a_control_that_is_at_chance_makes_the_figure_say_nothing_and_a_missing_one_is_said() -> None:
    low, high = Measure(0.57, null=0.62, ci=(0.56, 0.58)), Measure(0.52, null=0.38, ci=(0.51, 0.53), p=0.001)
    assert "at chance, so the figure says nothing of an adapter" in control_sentence(low, given=False)
    assert "aligned, so the figure can see alignment" in control_sentence(high, given=False)
    assert "recipe" not in control_sentence(high, given=False) and "not the reference's" in control_sentence(
        high, given=True
    )
    assert "not known" in control_sentence(None, given=False) and "not known" in control_sentence(
        undefined("dead"), given=False
    )
    said = control_statement({12: high, 9: low, 15: high}, given=True)
    assert (
        "at chance at layer 9 (0.57 [0.56, 0.58], null 0.62)" in said
        and "aligned at layers 12 (0.52 [0.51, 0.53], null 0.38), 15" in said
    )
    assert "not the reference's" in said and control_statement({}, given=False) == ""


def said_of_control(control_is_of_base: bool) -> str:
    """The verdict of a planted layer whose base control the product's recipe learned from base activations,
    or from rows of other atoms."""
    g = torch.Generator().manual_seed(0)
    world = half(g)
    inputs = inputs_of(world, g)
    rows = torch.from_numpy(inputs.base_fit) if control_is_of_base else sparse(units(128, g), TOKENS, 4, g)
    dictionary = dictionary_of(units(64, g), world.deltas)
    measures = compare(replace(inputs, base_control=fitted(rows, 1001)), LeafInputs(dictionary), SETTINGS)
    return verdict("r4", [LeafFigures("r4", 0, 64, 4, "topk", 0, measures)], CHANGED).text


def test_the_base_control_of_a_planted_world_is_called_aligned_by_the_verdict_and_one_of_other_atoms_is_not() -> (
    None
):
    assert "aligned, so the figure can see alignment" in said_of_control(True)
    assert "chance, so the figure says nothing of an adapter" in said_of_control(False)
