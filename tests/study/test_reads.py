"""A sweep over rank and size reads what each trial needs once, and makes no shard."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deltasae_ray.fit.fitting import FitJob
from deltasae_ray.fit.run import fitted_points
from deltasae_ray.fit.worker import fit_share
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.shards.format import TOKEN_COLUMNS, exponent_column
from deltasae_ray.shards.records import Source
from deltasae_ray.storage import Storage
from deltasae_ray.study.controls import control_points
from deltasae_ray.study.grid import grid_points, trials
from tests.fit.made import CFG, HOOKS, KEY, make_harvest

RANKS, LAYERS = (4, 8, 16, 32), tuple(h.layer for h in HOOKS)
ADAPTERS = tuple(
    Source(f"r{rank}", "adapter", f"{rank:02d}" * 8, rank=rank, alpha=2.0 * rank, seed=0) for rank in RANKS
)
GRID = replace(CFG, d_sae=(32, 48, 64), steps=4, seeds=2)


@pytest.fixture
def read_columns(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str, str]]:
    """(unit, source, column) of every column that leaves a shard, with how often."""
    seen: Counter[tuple[str, str, str]] = Counter()
    read = pq.ParquetFile.read

    def counted(self: pq.ParquetFile, columns: list[str], use_threads: bool = True) -> object:
        facts = self.schema_arrow.metadata
        seen.update((facts[b"unit"].decode(), facts[b"source"].decode(), column) for column in columns)
        return read(self, columns, use_threads=use_threads)

    monkeypatch.setattr(pq.ParquetFile, "read", counted)
    return seen


def test_a_sweep_of_4_ranks_3_sizes_and_2_layers_reads_each_column_once_per_trial(
    tmp_path: Path, read_columns: Counter[tuple[str, str, str]]
) -> None:
    storage = Storage(str(tmp_path))
    units = make_harvest(storage, units=9, sources=(Source("base", "base", "base"), *ADAPTERS))
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / KEY).rglob("*") if p.is_file()}
    grid = trials(
        [AdapterRef(s.name, "adapters/x", s.digest, s.rank or 0, s.alpha or 0.0) for s in ADAPTERS], GRID
    )
    assert len(grid) == 12
    for trial in grid:
        points = grid_points(trial, LAYERS, GRID.seeds)
        read_columns.clear()
        fit_share(FitJob(storage, KEY, tuple(points), GRID), 0, 1, "cpu")
        assert len(fitted_points(storage, KEY, points, GRID)) == 4
        (source,) = (s.digest for s in ADAPTERS if s.name == trial.adapter)
        vectors = {
            (u.name, source, column) for u in units for h in HOOKS for column in (str(h), exponent_column(h))
        }
        assert {key: n for key, n in read_columns.items() if key[2] not in TOKEN_COLUMNS} == dict.fromkeys(
            vectors, 1
        )
        assert max(read_columns.values()) == 1, "tokens were read twice"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / KEY).rglob("*") if p.is_file()} == shards, (
        "a trial harvested"
    )


def test_all_adapters_sizes_seeds_and_controls_are_fitted_in_one_pass(
    tmp_path: Path, read_columns: Counter[tuple[str, str, str]]
) -> None:
    """As `jobs/fit.py` does it: what it fits is one job."""
    storage, adapters = (
        Storage(str(tmp_path)),
        [AdapterRef(s.name, "adapters/x", s.digest, s.rank or 0, s.alpha or 0.0) for s in ADAPTERS],
    )
    units = make_harvest(storage, units=9, sources=(Source("base", "base", "base"), *ADAPTERS))
    points = control_points(LAYERS, GRID, adapters, frozenset({"base", "gaussian"}), toy_reference=True)
    points += [p for trial in trials(adapters, GRID) for p in grid_points(trial, LAYERS, GRID.seeds)]
    read_columns.clear()
    fit_share(FitJob(storage, KEY, tuple(points), GRID), 0, 1, "cpu")
    assert len(fitted_points(storage, KEY, points, GRID)) == len(points) == 2 * 3 * (4 + 4 * (2 + 1))
    sources = ["base", *(s.digest for s in ADAPTERS)]
    vectors = {
        (u.name, source, column)
        for u in units
        for source in sources
        for h in HOOKS
        for column in (str(h), exponent_column(h))
    }
    assert {key: n for key, n in read_columns.items() if key[2] not in TOKEN_COLUMNS} == dict.fromkeys(
        vectors, 1
    )
