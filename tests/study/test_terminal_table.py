"""The table printed at a study's end, of rows made up."""

import re
from dataclasses import replace

from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.table import DivergenceRow, seed_rows
from deltasae_ray.analyses.verdict import Answer, Verdict
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.study.terminal_table import printed_table, printed_verdict

LEAF = LeafSpec("r4", 9, 256, 8, "topk", 0, 4, 0, "dictionary", "reference")
SHARE = Measure(0.5, null=1.0, ci=(0.45, 0.55), p=0.01)
UNCLEAR = Measure(0.8, null=0.5, ci=(0.3, 0.9), p=0.01)
"""A few loud latents carry the figure of one dictionary: resampled over latents, it says little."""


def rows_of(seeds: int) -> list[DivergenceRow]:
    measures = {
        "missing_share": SHARE,
        "monitor_r2": SHARE,
        "fvu_delta": SHARE,
        "fvu_pca": SHARE,
        "fvu_random_atoms": SHARE,
    }
    rows = [
        DivergenceRow.of(replace(LEAF, seed=seed, d_sae=d_sae), name, replace(m, value=m.value + seed / 100))
        for seed in range(seeds)
        for d_sae in (128, 256)
        for name, m in (measures | {"max_cosine_weighted": UNCLEAR}).items()
    ]
    return [*rows, *seed_rows(rows)]


def test_of_several_seeds_the_figures_over_seeds_are_printed_and_marked() -> None:
    head, _, line = printed_table(rows_of(2), "toy reference", 8)
    assert head == "Held against the toy reference; d_sae 256; means over 2 seeds"
    assert line.split()[:2] == ["r4", "9"]
    told = re.search(r"0\.805 \[(0\.\d{3}), (0\.\d{3})\] \(0\.500, p 0\.01\)(.*)", line)
    assert told is not None, "beyond chance over seeds, which agree"
    assert 0.55 < float(told[1]) < 0.805 < float(told[2]), "by the seeds' scatter, not by their latents"
    assert "0.51" in told[3], "the mean FVU"


def test_of_one_seed_its_own_figure_is_printed_with_what_it_cannot_tell() -> None:
    head, _, line = printed_table(rows_of(1), "toy reference", 8)
    assert "one seed" in head
    assert "0.800 [0.300, 0.900] (0.500, p 0.01 unclear)" in line


def test_the_longest_marks_leave_room_between_columns() -> None:
    near = Measure(0.512, null=0.5, ci=(-0.499, 0.501), p=0.000123)
    rows = [
        DivergenceRow.of(LEAF, r.name, near) if r.name in ("max_cosine_weighted", "monitor_r2") else r
        for r in rows_of(1)
    ]
    for p in (0.000123, 0.99):
        line = printed_table([replace(r, measure=replace(r.measure, p=p)) for r in rows], "toy reference", 8)[
            2
        ]
        assert ")0" not in line, line


def test_lines_of_one_layer_say_what_tells_them_apart() -> None:
    rows = rows_of(1)
    both = printed_table(
        [*rows, *(replace(r, k=16, architecture="batchtopk") for r in rows)], "toy reference", 8
    )
    assert [line.rpartition("/")[2].split()[1:] for line in both[2:]] == [
        ["k", "8", "topk"],
        ["k", "16", "batchtopk"],
    ]


def test_a_verdict_is_four_short_lines() -> None:
    answers = (
        Answer("Did it change the model?", ("domain loss -0.110; " * 20,)),
        Answer(
            "Can the reference see it?", ("With 8 atoms it explains 27%", "Missing share of the change 0.87")
        ),
        Answer("How sure?", ("100 evaluation documents",)),
        Answer("Not tested:", ("triggers absent from this text",)),
    )
    lines = printed_verdict(Verdict("r4", "PARTLY VISIBLE", 9, answers, ()))
    assert len(lines) == 4 and all(len(line) <= 114 for line in lines)
    assert lines[0] == "r4, layer 9: PARTLY VISIBLE" and lines[1].endswith(" …")
    assert lines[2:] == [
        "  Can the reference see it? Missing share of the change 0.87",
        "  How sure? 100 evaluation documents",
    ]
