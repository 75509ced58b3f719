"""The comparison of two roots: what it counts as the same, and what it does not let pass."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.same_study import compare_roots

ROW = {
    "adapter": "r4",
    "layer": 9,
    "d_sae": 256,
    "k": 8,
    "architecture": "topk",
    "seed": 0,
    "reference": "toy",
}
AUDIT = [ROW | {"name": "mean", "energy_share": 0.2, "promoted": ["a"]}]
BEFORE = [
    ROW | {"metric": "missing_share_no_top3", "value": 0.1 + 0.2, "gone": 1},
    ROW | {"seed": None, "metric": "missing_share_seeds", "value": None},
]
NOW = [
    ROW | {"seed": None, "metric": "missing_share", "variant": "", "over_seeds": True, "value": None},
    ROW | {"metric": "missing_share", "variant": "no_top3", "over_seeds": False, "value": 0.1 + 0.2},
    ROW | {"metric": "added_since", "variant": "", "over_seeds": False, "value": 1.0},
]


def make(
    root: Path, rows: list[dict[str, Any]], shard: bytes = b"rows", audit: list[dict[str, Any]] = AUDIT
) -> Path:
    (root / "harvest/h1/sources/base").mkdir(parents=True)
    (root / "harvest/h1/sources/base/0-abc.parquet").write_bytes(shard)
    pq.write_table(pa.Table.from_pylist(rows), root / "divergence.parquet")
    pq.write_table(pa.Table.from_pylist(audit), root / "audit.parquet")
    return root


def compared(*roots: Path) -> tuple[int, str]:
    said: list[str] = []
    return compare_roots(*roots, say=said.append), "\n".join(said)


def test_names_with_endings_and_columns_are_the_same_rows(tmp_path: Path) -> None:
    code, said = compared(make(tmp_path / "a", BEFORE), make(tmp_path / "b", NOW))
    assert code == 0, said
    assert "compared 1 files of shards, 3 rows and 4 values of tables" in said
    assert "rows of divergence.parquet 0 and 1" in said and "columns of divergence.parquet 1 and 0" in said


def test_the_last_bit_of_a_value_is_a_difference(tmp_path: Path) -> None:
    code, said = compared(
        make(tmp_path / "a", BEFORE), make(tmp_path / "b", [NOW[0], NOW[1] | {"value": 0.3}])
    )
    assert code == 1 and "missing_share no_top3 False : value 0.30000000000000004 and 0.3" in said


def test_a_changed_byte_of_a_shard_and_a_changed_list_are_differences(tmp_path: Path) -> None:
    other = [AUDIT[0] | {"promoted": ["b"]}]
    code, said = compared(make(tmp_path / "a", NOW), make(tmp_path / "b", NOW, b"rowz", other))
    assert (
        code == 1
        and "0-abc.parquet: sha256" in said
        and "promoted ['a'] and ['b']" in said
        and "2 differences" in said
    )


def test_nothing_to_compare_is_no_agreement(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = compared(make(tmp_path / "a", NOW), tmp_path / "empty")
    assert code == 1 and "is not there" in said and "in one root only" in said
    assert compared(make(tmp_path / "c", NOW[:1]), make(tmp_path / "d", NOW[2:]))[0] == 1, (
        "tables without a common row"
    )
