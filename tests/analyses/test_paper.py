"""The published figures beside ours."""

from dataclasses import astuple

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.paper import NOTES, Judged, Line, paper_blocks, paper_table
from deltasae_ray.analyses.paper_figures import LAYERS, PUBLISHED, RANKS
from deltasae_ray.analyses.verdict import LeafFigures
from deltasae_ray.metrics.catalogue import metric
from deltasae_ray.metrics.measure import Measure, undefined


def judged(layer: int, rank: int = 4, name: str = "", **measures: Measure) -> Judged:
    return Judged(rank, LeafFigures(name or f"r{rank}", layer, 512, 8, "topk", 0, measures))


def lines(found: list[Judged], title: str) -> list[Line]:
    return [line for block in paper_blocks(found) for line in block.lines if line.figure == title]


def test_every_metric_named_here_is_in_the_catalogue() -> None:
    for figure in PUBLISHED:
        for name in (*figure.as_published, *figure.calibrated, *filter(None, [figure.untrained])):
            assert metric(name)
        assert len(figure.values) == len(RANKS) if figure.by_rank else len(figure.values) in (1, len(LAYERS))


def test_means_over_adapters_stand_beside_the_papers_value_with_their_nulls() -> None:
    both = [
        judged(
            12,
            r,
            paper_max_cosine=Measure(v, null=0.066),
            max_cosine=Measure(v + 0.3, null=0.36),
            paper_max_cosine_untrained=Measure(0.067),
        )
        for r, v in ((4, 0.06), (16, 0.08))
    ]
    told = Line(
        "mean max-cosine", "12", "0.071", "0.07", "0.066; before training 0.067", "0.37 (max_cosine)", "0.36"
    )
    assert lines(both, "mean max-cosine") == [told]


def test_a_mean_has_the_mean_of_the_adapters_intervals_and_one_that_has_none_says_why() -> None:
    sure = [Measure(0.06, null=0.066, ci=(0.05, 0.08)), Measure(0.08, null=0.066, ci=(0.07, 0.10))]
    both = [judged(12, rank, paper_max_cosine=m, max_cosine=m) for rank, m in zip((4, 16), sure, strict=True)]
    line = lines(both, "mean max-cosine")[0]
    assert (line.published, line.calibrated) == ("0.07 [0.06, 0.09]", "0.07 [0.06, 0.09] (max_cosine)")
    why = "interval undefined: one dictionary, it takes refitted ones (see …_seeds)"
    bare = [
        *both[:1],
        judged(
            12,
            16,
            paper_max_cosine=Measure(0.08, null=0.066)
            .because("kappa", "kappa undefined: close")
            .because("ci", why),
        ),
    ]
    block = paper_blocks(bare)[0]
    assert block.lines[0].published == "0.07" and f"mean max-cosine: {why}." in block.notes
    some = [*both[:1], judged(12, 16, paper_max_cosine=undefined("dead", null=0.066))]
    assert lines(some, "mean max-cosine")[0].published == "0.06 [0.05, 0.08] (1 of 2 adapters)"


def test_a_mean_over_adapters_is_over_seeds_too_where_there_are_several() -> None:
    found = judged(
        12,
        paper_max_cosine=Measure(0.06, null=0.066),
        paper_max_cosine_seeds=Measure(0.07, null=0.066, ci=(0.0, 0.14)),
    )
    assert lines([found], "mean max-cosine")[0].published == "0.07 [0, 0.14]"


def test_dictionaries_of_another_k_or_architecture_have_a_block_of_their_own_and_what_no_dictionary_enters_is_told_once() -> (
    None
):
    figures = {"paper_max_cosine": Measure(0.06), "delta_norm": Measure(3.0, ci=(2.0, 4.0))}
    shapes = ((8, "topk"), (16, "topk"), (8, "batchtopk"))
    found = [
        Judged(
            rank,
            LeafFigures(
                f"r{rank}", 12, 512, k, architecture, 0, figures | {"paper_max_cosine": Measure(k / 100)}
            ),
        )
        for rank in (4, 16)
        for k, architecture in shapes
        if (rank, k) != (16, 16)
    ]
    blocks = {block.title: block.lines for block in paper_blocks(found)}
    assert list(blocks) == [
        "d_sae 512, k 8, batchtopk; r4, r16",
        "d_sae 512, k 8, topk; r4, r16",
        "d_sae 512, k 16, topk; r4",
        "Whatever the dictionary",
    ]
    assert [b[0].published for b in blocks.values()][:3] == ["0.08", "0.08", "0.16"]
    assert [line.published for line in blocks["Whatever the dictionary"]] == ["3 [2, 4]", "3 [2, 4]"]


def test_as_many_layers_as_the_paper_stand_beside_its_own_and_others_beside_its_range() -> None:
    six = [judged(layer, paper_relative_error=Measure(1.2, null=1.0)) for layer in range(6)]
    assert [line.paper for line in lines(six, "relative error of the reference")] == [
        "2.46",
        "1.57",
        "1.28",
        "1.18",
        "1.26",
        "1.14",
    ]
    assert lines(six[:1], "relative error of the reference")[0].paper == "1.14 to 2.46"


def test_what_is_undefined_or_was_not_measured_is_said_so() -> None:
    line = lines(
        [judged(12, missing_share=undefined("few directions", null=1.0))], "relative error of the reference"
    )[0]
    assert astuple(line)[3:] == ("–", "–", "undefined (missing_share)", "1")


def test_a_narrow_model_has_its_widest_angle_in_the_place_of_the_papers_and_names_it() -> None:
    narrow = [
        judged(12, paper_angle_k64=Measure(80.0, null=83.4), angle_decoder_k64=Measure(70.0, null=75.0))
    ]
    found = {line.figure: line for line in paper_blocks(narrow)[0].lines if "angle" in line.figure}
    assert list(found) == ["mean principal angle, k = 64, degrees", "mean principal angle, k = 256, degrees"]
    assert astuple(found["mean principal angle, k = 256, degrees"])[3:] == (
        "80 (paper_angle_k64)",
        "83.4",
        "70 (angle_decoder_k64)",
        "75",
    )


def test_density_and_norm_stand_by_rank_at_the_deepest_layer() -> None:
    found = [judged(layer, rank, density=Measure(10.0 * rank)) for layer in (1, 2) for rank in (4, 64)]
    told = [(line.where, line.paper, line.published) for line in lines(found, "density at the deepest layer")]
    assert told == [("2, r = 4", "30.3", "40"), ("2, r = 64", "–", "640")]


def test_growth_of_the_norm_is_told_beside_that_of_the_residual_stream() -> None:
    found = [
        judged(layer, delta_norm=Measure(v), delta_relative_energy=Measure(e))
        for layer, v, e in ((5, 2.0, 0.01), (38, 36.0, 0.04))
    ]
    line = lines(found, "delta norm, first layer to last")[0]
    assert (line.where, line.paper, line.published, line.calibrated) == (
        "5 to 38",
        "× 18",
        "× 18",
        "× 2 (of the base's norm)",
    )
    assert not lines(found[:1], "delta norm, first layer to last")
    late = judged(38, 64, delta_norm=Measure(900.0), delta_relative_energy=Measure(1.0))
    assert lines([*found, late], "delta norm, first layer to last")[0].published == "× 18", (
        "of the adapters that are at both layers"
    )
    silent = [judged(layer, delta_norm=Measure(0.0), delta_relative_energy=Measure(0.0)) for layer in (5, 38)]
    assert lines(silent, "delta norm, first layer to last")[0].published == "–"


def test_what_an_adapter_does_to_predictions_is_told_by_text() -> None:
    seen = {"r4": [Behaviour("domain", Measure(-0.4), Measure(0.19, ci=(0.15, 0.24)))]}
    assert paper_blocks([], seen)[-1].lines[-1] == Line(
        "effect on predictions, KL in nats", "r4, domain", "none seen", "–", "–", "0.19 [0.15, 0.24]", "0"
    )


def test_the_table_is_markdown_with_its_notes() -> None:
    table = paper_table(paper_blocks([judged(12, paper_max_cosine=Measure(0.07, null=0.066))]))
    assert "### d_sae 512, k 8, topk; r4\n" in table
    assert {row.count("|") for row in table.splitlines() if row.startswith("|")} == {8}
    assert all(f"- {note}" in table for note in NOTES)
