"""What a study costs at any size: sums that can be done by hand, what limits it, and the table of the docs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.study.scale import Scale, costs
from tests.study.scale_table import rows, table

DOCS = Path(__file__).parents[2] / "docs/scale.md"
SMALL = Scale(1_024_000, adapters=4)


def test_counts_are_units_times_sources() -> None:
    assert (SMALL.units, SMALL.all_sources, SMALL.rows, SMALL.leaves) == (1000, 6, 6000, 48)
    cost = costs(SMALL)
    assert cost.head_bytes["manifest"] == 6000 * 380 and cost.head_bytes["text"] == 26 * 1_024_000
    assert cost.requests["shards"] == 6000 and cost.requests["commit records"] == 3000
    assert cost.memory == sum(cost.head_bytes.values())


def test_more_gangs_shorten_their_own_part_alone() -> None:
    one, many = costs(replace(SMALL, gangs=1)), costs(replace(SMALL, gangs=64))
    assert one.seconds["gangs"] == pytest.approx(64 * many.seconds["gangs"])
    assert {k: v for k, v in one.seconds.items() if k != "gangs"} == {
        k: v for k, v in many.seconds.items() if k != "gangs"
    }
    assert one.limit == "gangs"


def test_the_manifest_of_ten_million_units_is_read_in_two_minutes() -> None:
    """10 M units of 6 sources, 60 M rows: 23 GB in a process, and 102 s."""
    of = Scale(10_000_000 * 1024, adapters=4, gangs=256)
    assert costs(of).head_bytes["manifest"] == pytest.approx(23e9, rel=0.01)
    assert costs(of).seconds["manifest"] == pytest.approx(102, rel=0.01)


def test_dollars_are_of_gangs_and_requests() -> None:
    free, paid = costs(SMALL), costs(replace(SMALL, dollars_per_hour=10.5))
    hours = free.seconds["gangs"] / 3600 * SMALL.gangs
    assert paid.dollars - free.dollars == pytest.approx(10.5 * hours)
    assert 0 < free.dollars < 1


def test_the_documented_table_is_what_the_function_gives() -> None:
    assert table() in DOCS.read_text(), "python -m tests.study.scale_table writes it"
    assert {r.gangs for r in rows()} >= {1, 512} and {r.adapters for r in rows()} >= {1, 1000}
    assert {r.tokens for r in rows()} >= {10**6, 10**10}


def test_a_plan_says_what_the_head_bears() -> None:
    assert re.fullmatch(
        r"[\d.,]+ GB of memory, [\d,]+ requests of the store; what takes longest of the harvest and its books: \w.*",
        str(costs(SMALL)),
    )
