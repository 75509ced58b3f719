"""Rows over seeds: made of the leaves' rows, and read by the verdict beside each seed's own."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deltasae_ray.analyses.divergence.task import read_measures
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.table import (
    PARQUET,
    DivergenceRow,
    corrected,
    leaf_figures,
    read_table,
    seed_rows,
    write_table,
)
from deltasae_ray.errors import StorageError
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.storage import Storage

LEAF = LeafSpec("r4", 9, 256, 8, "topk", 0, 4, 0, "dictionary", "reference")
M = Measure(0.5, null=1.0, ceiling=0.02, ci=(0.45, 0.55), p=0.01, kappa=0.51, n=77, kappa_ci=(0.46, 0.56))


def rows_of(seeds: int, **values: Measure) -> list[DivergenceRow]:
    return [
        DivergenceRow.of(replace(LEAF, seed=seed, layer=layer), name, m)
        for seed in range(seeds)
        for layer in (9, 12)
        for name, m in values.items()
    ]


def test_a_row_carries_a_measure_whole() -> None:
    assert DivergenceRow.of(LEAF, "missing_share", M).measure == M


def test_two_seeds_make_a_row_over_seeds_of_what_a_dictionary_enters() -> None:
    made = seed_rows(rows_of(2, missing_share=M, mean_share=M, cka_adapters=M))
    assert {(r.name, r.flat["seed"], r.adapter, r.layer) for r in made} == {
        ("missing_share_seeds", None, "r4", layer) for layer in (9, 12)
    }
    assert made[0].value == pytest.approx(0.5) and made[0].kappa_low is not None
    assert seed_rows(rows_of(1, missing_share=M)) == []


def test_shapes_of_dictionaries_are_not_mixed() -> None:
    larger = [replace(r, d_sae=512, seed=1) for r in rows_of(1, missing_share=M)]
    assert seed_rows([*rows_of(1, missing_share=M), *larger]) == []


def test_the_verdict_reads_figures_over_seeds_beside_each_seeds_own() -> None:
    rows = rows_of(2, missing_share=M)
    leaves = leaf_figures([*rows, *seed_rows(rows)], "r4")
    assert [(leaf.layer, leaf.seed) for leaf in leaves] == [(9, 0), (9, 1), (12, 0), (12, 1)]
    assert all(set(leaf.measures) == {"missing_share", "missing_share_seeds"} for leaf in leaves)
    assert leaves[0].over_seeds("missing_share") is leaves[0].measures["missing_share_seeds"]
    assert leaf_figures(rows, "r4")[0].over_seeds("missing_share") == M


def test_the_table_keeps_rows_over_seeds_and_kappas_interval(tmp_path: Path) -> None:
    rows = rows_of(2, missing_share=M)
    rows = corrected([*rows, *seed_rows(rows)])
    storage = Storage(str(tmp_path))
    write_table(storage, rows)
    assert read_table(storage) == rows


def test_variants_and_seeds_are_columns_and_names_only_where_one_name_is_needed(tmp_path: Path) -> None:
    rows = rows_of(2, missing_share_no_top3=M, angle_pca_k16=undefined("too narrow"))
    storage = Storage(str(tmp_path))
    write_table(storage, [*rows, *seed_rows(rows)])
    table = pq.read_table(storage.path(PARQUET)).to_pylist()
    named = {(r["metric"], r["variant"], r["over_seeds"], r["seed"]) for r in table}
    shares = {
        ("missing_share", "no_top3", over, seed) for over, seed in ((False, 0), (False, 1), (True, None))
    }
    assert named == shares | {("angle_pca_k16", "", False, seed) for seed in (0, 1)}
    assert {r.name for r in seed_rows(rows)} == {"missing_share_no_top3_seeds"}
    assert {r["reason"] for r in table if r["value"] is None} == {"too narrow"}


@pytest.mark.parametrize("damage", [b"{", b"[{}]", b"[1]", b'[{"value": 0.5}]'])
def test_a_damaged_table_or_file_of_measures_is_a_typed_error(tmp_path: Path, damage: bytes) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("divergence.json", damage)
    with pytest.raises(
        StorageError, match="divergence.json holds no table of this version .*run the report stage again"
    ):
        read_table(storage)
    storage.write_json(
        "measures/a.json", {"measures": {"missing_share": {"value": None if damage == b"{" else str(damage)}}}
    )
    with pytest.raises(StorageError, match="a.json holds no measures .*delete it and run again"):
        read_measures(storage, "measures/a.json")
