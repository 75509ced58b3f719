"""The published figures beside ours."""

from deltasae_ray.divergence.catalogue import metric
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.paper import LAYERS, PUBLISHED, paper_table
from deltasae_ray.divergence.verdict import LeafFigures


def leaf(layer: int, **measures: Measure) -> LeafFigures:
    return LeafFigures(layer, 512, 8, 0, measures)


def lines(leaves: list[LeafFigures], title: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in paper_table(leaves).splitlines()]
    return [row for row in rows if row[0] == title]


def test_every_metric_named_here_is_in_the_catalogue() -> None:
    for figure in PUBLISHED:
        for name in (figure.as_published, *figure.calibrated):
            assert not name or metric(name)
        assert len(figure.values) in (1, len(LAYERS))


def test_means_over_adapters_stand_beside_the_papers_value_with_their_nulls() -> None:
    both = [leaf(12, paper_max_cosine=Measure(v, null=0.066), max_cosine=Measure(v + 0.3, null=0.36)) for v in (0.06, 0.08)]
    assert lines(both, "mean max-cosine") == [["mean max-cosine", "12", "0.071", "0.07", "0.066", "0.37 (max_cosine)", "0.36"]]


def test_as_many_layers_as_the_paper_stand_beside_its_own_and_others_beside_its_range() -> None:
    six = [leaf(layer, paper_relative_error=Measure(1.2, null=1.0)) for layer in range(6)]
    assert [row[2] for row in lines(six, "relative error of the reference")] == ["2.46", "1.57", "1.28", "1.18", "1.26", "1.14"]
    assert lines(six[:1], "relative error of the reference")[0][2] == "1.14 to 2.46"


def test_what_is_undefined_or_was_not_measured_is_said_so() -> None:
    row = lines([leaf(12, missing_share=undefined("few directions", null=1.0))], "relative error of the reference")[0]
    assert row[3:] == ["–", "–", "undefined (missing_share)", "1"]
