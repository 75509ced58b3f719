"""The ceiling of figures between adapters comes from two trainings of one rank, and from no others."""

from dataclasses import replace

import pytest

from deltasae_ray.analyses.divergence.adapter_seeds import (
    are_twins,
    compared_pairs,
    describe_pairs,
    with_ceilings,
)
from deltasae_ray.analyses.divergence.pair_task import PairSpec, adapter_pairs
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.metrics.measure import Measure, undefined

FOUND = {
    "cka_adapters": Measure(0.5, null=0.1, ci=(0.45, 0.55), n=40),
    "max_cosine_adapters": Measure(
        0.5,
        null=0.3,
        ceiling=0.32,
        n=64,
        reasons=(("kappa", "kappa undefined: the ceiling, .32, is low"), ("note", "something else")),
    ),
    "missing_share_adapters": Measure(0.6, null=1.0, ci=(0.5, 0.7), n=40),
}
ALIKE = {
    "cka_adapters": Measure(0.9, null=0.1, ci=(0.88, 0.92), n=40),
    "max_cosine_adapters": Measure(0.7, null=0.3, ceiling=0.8, ci=(0.69, 0.71), n=64),
    "missing_share_adapters": Measure(0.2, null=1.0, ci=(0.15, 0.25), n=40),
}


def leaf(rank: int, seed: int | None, layer: int = 1, d_sae: int = 64) -> LeafSpec:
    return LeafSpec(
        f"r{rank}-s{seed}", layer, d_sae, 4, "topk", 0, rank, seed, f"dictionaries/{rank}-{seed}", "reference"
    )


def found(leaves: list[LeafSpec]) -> dict[PairSpec, dict[str, Measure]]:
    return {pair: ALIKE if pair.one.rank == pair.other.rank else FOUND for pair in adapter_pairs(leaves)}


def test_a_pair_of_different_ranks_has_the_twins_of_either_as_its_ceiling() -> None:
    judged = with_ceilings(found([leaf(4, 0), leaf(4, 1), leaf(16, 0)]))
    for pair, figures in judged.items():
        if are_twins(pair):
            assert (
                figures["max_cosine_adapters"].ceiling == 0.8
                and "two training seeds of rank 4" in figures["cka_adapters"].reason
            )
            continue
        assert figures["cka_adapters"].ceiling == 0.9 and figures["cka_adapters"].kappa == pytest.approx(0.5)
        assert figures["max_cosine_adapters"].ceiling == 0.7 and figures[
            "max_cosine_adapters"
        ].kappa == pytest.approx(0.5)
        assert figures["missing_share_adapters"].ceiling == 0.2 and figures[
            "missing_share_adapters"
        ].kappa == pytest.approx(0.5)
        ceiling = (
            "something else; the ceiling is that of two training seeds of one rank (r4-s0 and r4-s1);"
            " interval of kappa undefined"
        )
        assert figures["max_cosine_adapters"].reason.startswith(ceiling)


def test_the_interval_of_a_kappa_goes_with_the_ceiling_it_was_of() -> None:
    """A second seed's; also where the twins' ceiling is too near the null for any kappa."""
    pairs = found([leaf(4, 0), leaf(4, 1), leaf(16, 0)])
    placed = replace(FOUND["max_cosine_adapters"], ceiling=0.6, kappa=0.67, kappa_ci=(0.6, 0.74), reasons=())
    near = replace(ALIKE["max_cosine_adapters"], value=0.301, ci=(0.2, 0.4))
    for twins, kappa in ((ALIKE["max_cosine_adapters"], 0.5), (near, None)):
        given = {
            p: figures | {"max_cosine_adapters": twins if are_twins(p) else placed}
            for p, figures in pairs.items()
        }
        other = next(figures for p, figures in with_ceilings(given).items() if not are_twins(p))[
            "max_cosine_adapters"
        ]
        assert (
            other.kappa == (None if kappa is None else pytest.approx(kappa))
            and other.kappa_ci is None
            and "kappa undefined" in other.reason
        )


def test_twins_of_both_ranks_are_averaged_and_those_of_other_places_are_not() -> None:
    leaves = [leaf(rank, seed, layer) for layer in (1, 2) for rank in (4, 16) for seed in (0, 1)]
    by_pair = {
        pair: (
            ALIKE
            | {
                "cka_adapters": replace(
                    ALIKE["cka_adapters"], value=0.7 + 0.1 * pair.one.layer + 0.01 * (pair.one.rank or 0)
                )
            }
            if are_twins(pair)
            else FOUND
        )
        for pair in adapter_pairs(leaves)
    }
    for pair, figures in with_ceilings(by_pair).items():
        if not are_twins(pair):
            assert figures["cka_adapters"].ceiling == pytest.approx(0.7 + 0.1 * pair.one.layer + 0.1)


def test_without_two_seeds_figures_are_as_they_were() -> None:
    given = found([leaf(4, 0), leaf(16, 0)])
    assert with_ceilings(given) == given
    unknown = found([leaf(4, None), replace(leaf(4, None), adapter="other"), leaf(16, 0)])
    assert with_ceilings(unknown) == unknown  # given adapters of one rank need not be trained alike


def test_of_too_many_adapters_only_those_that_differ_in_their_seed_are_compared() -> None:
    leaves = [leaf(rank, seed, layer) for rank in (4, 16) for seed in (0, 1) for layer in (1, 2)]
    assert len(compared_pairs(leaves, 6)) == len(adapter_pairs(leaves)) == 12, (
        "6 pairs of 4 adapters, 2 layers"
    )
    few = compared_pairs(leaves, 5)
    assert len(few) == 4 and all(map(are_twins, few))
    given = [replace(leaf(4, None), adapter=f"a{i}") for i in range(100)]
    assert compared_pairs(given, 200) == []
    assert describe_pairs(20, 200) == "" and describe_pairs(100, 200).startswith(
        "4,950 are more than diverge.pairs=200"
    )


def test_undefined_figures_and_ceilings_without_interval_give_no_kappa() -> None:
    pairs = found([leaf(4, 0), leaf(4, 1), leaf(16, 0)])
    twins = next(p for p in pairs if are_twins(p))
    bare = {name: replace(m, ci=None) for name, m in ALIKE.items()} | {
        "cka_adapters": undefined("too few documents")
    }
    other = next(p for p in pairs if not are_twins(p))
    judged = with_ceilings(
        pairs
        | {twins: bare, other: FOUND | {"missing_share_adapters": undefined("few directions", null=1.0)}}
    )[other]
    assert judged["cka_adapters"] == FOUND["cka_adapters"]
    assert (
        judged["max_cosine_adapters"].kappa is None
        and "the ceiling has no interval" in judged["max_cosine_adapters"].reason
    )
    assert judged["missing_share_adapters"].value is None
