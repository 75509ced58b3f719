"""Gangs on real Ray, with workers that hold no model."""

from pathlib import Path

import pytest

from deltasae_ray.errors import ModelError, PrecisionError
from deltasae_ray.gangs.config import GangConfig
from deltasae_ray.gangs.run import run_units
from tests.gangs.stub import Stub, unit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
UNITS = [(unit(i), {"i": i}) for i in range(5)]
EXPECTED = {unit(i).name: i for i in range(5)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_unit_is_run_and_returned_once_with_its_todo(ranks: int, tmp_path: Path) -> None:
    results = dict(run_units(UNITS, Stub(tmp_path), GangConfig(ranks=ranks)))
    assert {name: r["number"] for name, r in results.items()} == EXPECTED
    assert all(r["todo"] == {"i": r["number"]} and r["keep"] and r["world"] == ranks for r in results.values())
    runs = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(ranks)]
    assert len({len(lines) for lines in runs}) == 1, "every rank takes part in every call: collectives wait for all"
    assert sum(line.endswith("True") for lines in runs for line in lines) == 5, "padding is never kept"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_process_restarts_its_gang_and_no_unit_is_lost(ranks: int, tmp_path: Path) -> None:
    results = dict(run_units(UNITS, Stub(tmp_path, die_once_at=3), GangConfig(ranks=ranks)))
    assert (tmp_path / "killed").exists()
    assert {name: r["number"] for name, r in results.items()} == EXPECTED


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_a_worker_raises_on_purpose_reaches_the_caller_as_it_is(ranks: int, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="unit 2 holds NaN: remedy"):
        list(run_units(UNITS, Stub(tmp_path, fail_at=2), GangConfig(ranks=ranks)))
    with pytest.raises(ModelError, match="cannot be loaded: remedy"):
        list(run_units(UNITS, Stub(tmp_path, refuse=True), GangConfig(ranks=ranks, max_restarts=1)))


def test_no_work_starts_no_gang(tmp_path: Path) -> None:
    assert list(run_units([], Stub(tmp_path, refuse=True), GangConfig())) == []
