"""Which latents are visible, over a small study: answers stored once, rows, and what one seed leaves open."""

import dataclasses

import pyarrow.parquet as pq
import pytest
import torch

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.leaf_spec import LeafSpec, RandomCell
from deltasae_ray.analyses.table import leaf_figures, read_table, write_table
from deltasae_ray.analyses.visibility.run import (
    CELLS_A_TASK,
    Seen,
    _asked,
    cell_spec,
    first_seeds,
    groups,
    see_points,
)
from deltasae_ray.analyses.visibility.table import write_latents
from deltasae_ray.metrics.absent_parts import UNKNOWN
from deltasae_ray.storage import Storage
from tests.analyses.made import ATOMS, KEY, SOURCES, atoms, make_leaves, make_study, save_dictionary

CFG = DivergeConfig(atoms=3, code_tokens=256, bootstrap=100)


def near(storage: Storage, name: str, rows: torch.Tensor, seed: int) -> str:
    """A dictionary of nearly these rows, as another seed would find."""
    moved = rows + 0.02 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return save_dictionary(storage, name, torch.nn.functional.normalize(moved, dim=1))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return make_study(tmp_path_factory.mktemp("seen"))


@pytest.fixture(scope="module")
def leaves(study: Storage) -> list[LeafSpec]:
    """Of r4, at both layers; of its atoms the reference has half. r2's deltas stand for a random adapter's."""
    bases = [near(study, f"base-{i}", atoms("base"), i) for i in range(3)]
    random = RandomCell(SOURCES[1].digest, near(study, "random-0", atoms("r2"), 5), ())
    random = dataclasses.replace(random, others=(near(study, "random-1", atoms("r2"), 6),))
    return [
        dataclasses.replace(
            leaf,
            beside=(
                ("base_control", bases[0]),
                ("second", near(study, f"second-{leaf.layer}", atoms("r4"), 9)),
            ),
            siblings=tuple(bases[1:]),
            randoms=(random,),
        )
        for leaf in make_leaves(study)
        if leaf.adapter == "r4"
    ]


@pytest.fixture(scope="module")
def seen(study: Storage, leaves: list[LeafSpec], ray_cluster: None) -> Seen:  # noqa: ARG001
    return see_points(study, KEY, leaves, CFG)


def test_half_of_the_latents_are_named_and_they_are_those_that_the_reference_lacks(seen: Seen) -> None:
    for sight in seen.sights.values():
        named = [x.index for x in sight.own.answer.named]
        assert len(named) > 15 and min(named) >= ATOMS // 2, "the first half are the base's"
        assert sight.own.counts.visible + sight.own.counts.partly >= 15


def test_rows_hold_the_share_with_intervals_over_both_layers(seen: Seen, study: Storage) -> None:
    figures = leaf_figures(seen.rows, "r4")
    by_text = {(r.corpus, r.name) for r in seen.rows if r.corpus}
    assert by_text == {("domain", "not_visible_share"), ("domain", "missing_share")}
    assert [leaf.layer for leaf in figures] == [1, 2]
    for leaf in figures:
        f, visible = leaf.get("not_visible_share"), leaf.get("visible_share")
        assert f.ci is not None and f.ci[0] < 0.5 < f.ci[1] and f.n == visible.n
        alone = next(s for x, s in seen.sights.items() if x.layer == leaf.layer).own.answer.share
        assert alone.ci is not None and f.ci[1] - f.ci[0] > alone.ci[1] - alone.ci[0], "two layers at once"
        low, high = leaf.get("features_in_reference").ci or (1, 0)
        assert low <= 0.5 <= high
        assert (leaf.get("missing_share_positive_control").value or 1) < 0.2, "base latents are all seen"
        assert leaf.get("pooled_missing_share").value is not None
        assert leaf.get("not_visible_share_random_adapter").value is not None
    assert all(UNKNOWN not in row.lacks for row in seen.rows), "what a figure lacks has a reason"
    write_table(study, seen.rows)
    assert read_table(study) == list(seen.rows)


def test_a_second_run_decides_nothing(
    study: Storage, leaves: list[LeafSpec], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "deltasae_ray.analyses.visibility.run.run_tasks",
        lambda work, *_, **__: pytest.fail("decided again") if work else None,
    )
    assert see_points(study, KEY, leaves, CFG) == seen


def test_latents_have_a_table(study: Storage, seen: Seen) -> None:
    write_latents(study, seen.sights)
    table = pq.read_table(study.path("latents.parquet")).to_pylist()
    assert {row["layer"] for row in table} == {1, 2}
    assert {row["label"] for row in table} == {"partly", "not visible"}, "codes of either are drawn apart"
    assert all(row["p"] is not None for row in table if row["label"] == "partly")


def test_without_a_second_seed_or_base_dictionaries_the_reason_names_what_to_add(
    study: Storage, leaves: list[LeafSpec]
) -> None:
    control = leaves[0].beside[:1]
    alone = dataclasses.replace(leaves[0], beside=control, siblings=leaves[0].siblings)
    bare = dataclasses.replace(leaves[1], beside=leaves[1].beside[1:], siblings=())
    found = see_points(study, KEY, [alone, bare], CFG)
    assert "fit.seeds=2" in found.sights[alone].own.answer.share.reason
    assert "diverge.controls=base" in found.sights[bare].own.answer.share.reason
    assert all(row.value is None and row.reason for row in found.rows)


def test_all_seeds_of_a_cell_decide_what_repeats(leaves: list[LeafSpec]) -> None:
    third = dataclasses.replace(
        leaves[0], seed=2, dictionary="third", beside=(("second", leaves[0].dictionary),)
    )
    ((first, alike),) = first_seeds([third, leaves[0]]).items()
    assert first == leaves[0]
    assert cell_spec(first, alike, "x").others == ("third", leaves[0].control("second"))


def test_a_release_calibrates_in_the_place_of_what_is_made_here(leaves: list[LeafSpec]) -> None:
    made = cell_spec(leaves[0], [leaves[0]], "x").bases
    assert made == (leaves[0].control("base_control"), *leaves[0].siblings)
    given = dataclasses.replace(leaves[0], release=("a", "b"))
    assert cell_spec(given, [given], "x").bases == ("a", "b")


def test_missing_shares_are_measured_of_the_largest_dictionaries_alone(leaves: list[LeafSpec]) -> None:
    small = dataclasses.replace(leaves[0], d_sae=24)
    assert [_asked(leaf, [small, *leaves]) for leaf in (small, leaves[0])] == ["latents", "all"]


def test_a_task_takes_cells_of_one_base_side_and_the_longest_begin(leaves: list[LeafSpec]) -> None:
    one, other = (cell_spec(leaf, [leaf], "x") for leaf in leaves)
    brief = [dataclasses.replace(other, source=str(i), asked="latents") for i in range(CELLS_A_TASK + 1)]
    found = groups([*brief, one, dataclasses.replace(one, asked="random")])
    assert [len(some) for some in found] == [2, CELLS_A_TASK, 1] and found[0][0] == one
    assert all(len({(x.layer, x.reference, x.bases) for x in some}) == 1 for some in found)
