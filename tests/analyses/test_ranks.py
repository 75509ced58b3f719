"""Does rank or size matter? The change, whether it is none, and what would have been seen."""

import re

import numpy as np

from deltasae_ray.analyses.ranks import RankFigure, paired_statement, rank_statement, size_statement

RANKS = (2, 4, 8, 16)


def figures(
    rng: np.random.Generator, change: float, spread: float, seeds: int = 3, layers: int = 2
) -> list[RankFigure]:
    """Values that rise by `change` from the smallest rank to the largest, and differ by seed."""
    return [
        RankFigure(r, s, change * np.log2(r / 2) / 3 + noise, layer)
        for r in RANKS
        for s in range(seeds)
        for noise in [spread * rng.standard_normal()]
        for layer in range(layers)
    ]


def numbers(said: str) -> tuple[float, float, float, float]:
    """Change, interval, and the smallest change that would have been seen."""
    found = re.search(r"(\S+) \[(\S+), (\S+)\] from.*a change of (\S+) would", said)
    assert found, said
    change, low, high, seen = (float(x) for x in found.groups())
    return change, low, high, seen


def test_the_interval_covers_the_change_and_what_would_be_seen_is_seen_in_four_of_five() -> None:
    rng, covered, outside = np.random.default_rng(0), [], []
    seen = np.mean([numbers(size_statement("m", figures(rng, 0.0, 0.05)))[3] for _ in range(100)])
    for _ in range(300):
        _, low, high, _ = numbers(size_statement("m", figures(rng, float(seen), 0.05)))
        covered.append(low <= seen <= high)
        outside.append(not low <= 0 <= high)
    assert 0.91 <= np.mean(covered) <= 0.98 and 0.72 <= np.mean(outside) <= 0.88


def test_equivalence_is_shown_where_there_is_power_and_rarely_where_the_change_is_the_margin() -> None:
    rng = np.random.default_rng(1)
    none = [size_statement("m", figures(rng, 0.0, 0.02)) for _ in range(50)]
    much = [size_statement("m", figures(rng, 0.1, 0.02)) for _ in range(200)]
    assert np.mean(["as good as none" in x for x in none]) > 0.9
    assert np.mean(["as good as none" in x for x in much]) <= 0.08
    assert "not shown to be none" in size_statement("m", figures(rng, 0.0, 0.5), along="d_sae")


def test_one_seed_says_what_a_second_costs() -> None:
    one = figures(np.random.default_rng(2), 0.1, 0.02, seeds=1)
    for said in (size_statement("m", one), rank_statement("m", one)):
        assert "no claim about rank" in said and "adapt.seeds=2 trains 4 more adapters" in said
    assert "one rank" in size_statement("m", [x for x in one if x.rank == 2])
    assert "undefined" in size_statement("m", one[:-1])
    same = [RankFigure(r, s, 0.5) for r in RANKS for s in (0, 1)]
    assert "+0 [0, 0]" in size_statement("m", same) and "as good as none" in size_statement("m", same)


def paired(rng: np.random.Generator, change: float, spread: float, adapters: int = 6) -> list[RankFigure]:
    """Adapters of very different levels, each with three sizes of dictionary at two layers."""
    levels = rng.normal(0, 5, adapters)
    return [
        RankFigure(size, a, levels[a] + change * np.log2(size / 256) / 2 + noise, layer)
        for a in range(adapters)
        for size in (256, 512, 1024)
        for noise in [spread * rng.standard_normal()]
        for layer in (9, 12)
    ]


def test_sizes_of_dictionaries_are_compared_within_each_adapter() -> None:
    rng, covered = np.random.default_rng(3), []
    for _ in range(300):
        _, low, high, _ = numbers(paired_statement("f", paired(rng, 0.2, 0.05), along="d_sae"))
        covered.append(low <= 0.2 <= high)
    assert 0.91 <= np.mean(covered) <= 0.98
    said = paired_statement("f", paired(rng, 0.0, 0.01), along="d_sae")
    assert "from d_sae 256 to 1024, as good as none" in said
    one = [x for x in paired(rng, 0.0, 0.01) if x.adapter_seed == 0]
    assert "no claim about d_sae from one adapter" in paired_statement("f", one, along="d_sae")
    assert "undefined" in paired_statement("f", paired(rng, 0.0, 0.01)[1:], along="d_sae")
    assert "one d_sae" in paired_statement("f", [x for x in one if x.rank == 256], along="d_sae")
