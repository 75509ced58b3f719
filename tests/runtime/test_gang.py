"""Gangs on real Ray, with workers that hold no model."""

import json
import re
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.util.annotations import RayDeprecationWarning

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import DeltaSaeError, ModelError, PrecisionError, WorkerError
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import Gang, RankContext
from deltasae_ray.runtime.nodes import cores_per_rank, one_machine
from deltasae_ray.runtime.units import block_size, in_blocks, run_units
from tests.runtime.stub import EXPECTED, UNITS, Following, Storing, Stub, unit

pytestmark = pytest.mark.slow


# tests/harvest/test_harvest.py loses a rank and a leader, and finds no shard written again
@pytest.mark.prove
@pytest.mark.usefixtures("ray_cluster")
def test_a_gang_that_follows_a_killed_one_skips_what_that_had_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All units are one block, which is run again as a whole."""
    monkeypatch.setattr("deltasae_ray.runtime.units.block_size", lambda *_: len(UNITS))
    results = dict(run_units(UNITS, Storing(tmp_path, kill="leader"), GangConfig(ranks=2)))
    assert {name: r["number"] for name, r in results.items()} == EXPECTED
    kept = sorted(
        line.split()[0]
        for file in tmp_path.glob("rank*")
        for line in file.read_text().splitlines()
        if line.endswith("True")
    )
    assert kept == ["0", "1", "2", "3", "4"], "a unit that was stored was run again"
    # the other rank has stored nothing or unit 2 when unit 3 is struck
    assert {r["number"] for r in results.values() if "stored" in r} >= {0, 1}


@pytest.mark.usefixtures("ray_cluster")
def test_an_error_that_nobody_foresaw_ends_the_run_with_its_type_and_traceback(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="KeyError: 'a_name_that_is_not_there'") as raised:
        list(run_units(UNITS, Stub(tmp_path, bug_at=2), GangConfig(ranks=2)))
    assert "stub.py" in str(raised.value) and "would fail again" in str(raised.value)
    # whether the other rank has run its unit by then is chance
    lines = [line for file in tmp_path.glob("rank*") for line in file.read_text().splitlines()]
    assert len(lines) == len(set(lines)), "a gang was restarted"


@pytest.mark.usefixtures("ray_cluster")
def test_a_collective_that_times_out_is_a_lost_gang_and_no_bug(tmp_path: Path) -> None:
    results = dict(run_units(UNITS, Stub(tmp_path, break_at=2), GangConfig(ranks=2)))
    assert {name: r["number"] for name, r in results.items()} == EXPECTED
    assert (tmp_path / "broken").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_that_kills_its_gang_every_time_ends_the_run_and_not_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasae_ray.runtime.failure.MAX_FAULTS", 1)
    with pytest.raises(WorkerError, match=r"gang \w+ was lost 2 times on nodes that live"):
        list(run_units(UNITS, Stub(tmp_path, kill="worker", again=True), GangConfig()))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("ranks", "kill", "who"), [
    (2, "worker", r"rank \d of 2 of gang \w+"),
    pytest.param(2, "leader", r"the leader of gang \w+", marks=pytest.mark.prove),
    pytest.param(1, "leader", r"gang \w+", marks=pytest.mark.prove),
])  # fmt: skip
def test_a_process_that_is_stopped_is_told_and_its_gang_starts_again(
    ranks: int,
    kill: str,
    who: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("deltasae_ray.heartbeat.FLOOR_S", 2.0)
    stub = Stub(tmp_path, kill=kill, signal=signal.SIGSTOP)  # type: ignore[arg-type]
    results = dict(run_units(UNITS, stub, GangConfig(ranks=ranks)))
    assert {name: r["number"] for name, r in results.items()} == EXPECTED
    lines = [record.getMessage() for record in caplog.records if record.name == "deltasae_ray.stalls"]
    # the stub's rank sleeps on where it has stopped its leader, and may be told too
    told = [
        line
        for line in lines
        if re.match(rf"{who} on node [\d.]+ \(pid \d+\) is stopped \(SIGSTOP\) since ", line)
    ]
    assert len(told) == 1 and (kill == "leader" or lines == told), lines


@pytest.mark.usefixtures("ray_cluster")
def test_a_result_is_told_before_the_unit_that_waits_for_it_is_done(tmp_path: Path) -> None:
    """A stream's next window waits for what is made of the one before: a result that is kept back would stop
    both."""
    waited = []
    for _, heard_in_time in run_units(
        UNITS, Following(tmp_path), GangConfig(), part=lambda todo: todo["i"], parts=len(UNITS)
    ):
        waited.append(heard_in_time)
        (tmp_path / str(len(waited) - 1)).touch()
    assert waited == [True] * len(UNITS)


@pytest.mark.usefixtures("ray_cluster")
def test_a_gang_that_asks_for_no_gpu_takes_none_of_those_that_torch_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # This process is the leader: its threads stay as they are, since later tests hold its hashes against
    # those of other processes.
    monkeypatch.setattr("deltasae_ray.runtime.gang.cores_per_rank", lambda *_: torch.get_num_threads())
    found: list[RankContext] = []
    Gang(lambda context: found.append(context), [], ranks=1, gangs=1, cpus=1, gpus=0)  # type: ignore[arg-type, func-returns-value]
    assert found == [RankContext(0, 1, "cpu")]


@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_of_this_machine_is_one_machine_unless_nodes_come_on_demand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert one_machine()
    monkeypatch.setenv("RAY_CLUSTER_NAME", "cluster")  # as KubeRay's pods have it
    assert not one_machine()


class Lazy:
    """Units that are made one after the other, and how many of them there were at once."""

    def __init__(self, count: int) -> None:
        self._count, self._alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[TokenBatch, dict]]:
        for i in range(self._count):
            made = unit(i)
            weakref.finalize(made, self._gone)
            self._alive += 1
            self.most = max(self.most, self._alive)
            yield made, {"i": i}

    def _gone(self) -> None:
        self._alive -= 1


@pytest.mark.usefixtures("ray_cluster")
def test_every_unit_is_run_and_returned_once_in_step_and_all_are_never_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasae_ray.runtime.units.BLOCKS", 4)
    work = Lazy(259)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        results = list(run_units(work, Stub(tmp_path), GangConfig(ranks=2)))
    assert not [w for w in told if issubclass(w.category, RayDeprecationWarning)], (
        "nobody can do anything about it"
    )
    assert sorted(name for name, _ in results) == sorted(unit(i).name for i in range(259))
    assert all(
        unit(r["number"]).name == name and r["todo"] == {"i": r["number"]} and r["keep"] and r["world"] == 2
        for name, r in results
    )
    assert work.most <= 2
    runs = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    assert sum(line.endswith("True") for lines in runs for line in lines) == 259, "padding is never kept"
    assert len({len(lines) for lines in runs}) == 1, (
        "every rank takes part in every call: collectives wait for all"
    )


def test_no_block_holds_units_of_two_parts() -> None:
    work = [(unit(i), {"window": i // 5}) for i in range(12)]
    blocks = [
        [json.loads(row["todo"])["window"] for row in block]
        for block in in_blocks(work, 3, lambda todo: todo["window"])
    ]
    assert blocks == [[0, 0, 0], [0, 0], [1, 1, 1], [1, 1], [2, 2]]


def test_the_number_of_blocks_does_not_grow_with_the_units_nor_below_one_unit_per_rank() -> None:
    def blocks(units: int, **cfg: int) -> int:
        return -(-units // block_size(units, GangConfig(**cfg)))

    # Of ten parts of 100 units, four gangs have blocks of their own.
    assert (
        block_size(1000, GangConfig(gangs=4), parts=10) <= 25
        and block_size(10**6, GangConfig(gangs=4), parts=10**4) <= 25
    )
    assert block_size(10**6, GangConfig(gangs=4)) > 25

    assert [blocks(n) for n in (1, 1000, 1024)] == [1, 1000, 1024]
    assert all(512 < blocks(n) <= 1024 for n in (1025, 2049, 100_000, 1_000_001))
    assert blocks(1000, ranks=4) == 250
    assert blocks(100_000, gangs=100) > 2000, "every gang gets blocks enough to end at about the same time"


@pytest.mark.prove  # tests/harvest/test_harvest.py loses a node under a harvest
def test_a_node_that_is_lost_in_the_middle_of_a_unit_loses_none(tmp_path: Path) -> None:
    """In processes of their own: a second cluster cannot live beside the session's in one driver."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.runtime.node_loss", str(tmp_path)],
            stdout=output,
            stderr=output,
            timeout=1000,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    assert json.loads((tmp_path / "results.json").read_text()) == EXPECTED


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("ranks", "stub", "error"), [
    # of two ranks: as an error that nobody foresaw
    (1, {"fail_at": 2}, PrecisionError("unit 2 holds NaN: remedy")),
    (2, {"refuse": True}, ModelError("this model cannot be loaded: remedy")),
])  # fmt: skip
def test_what_a_worker_raises_on_purpose_reaches_the_caller_as_it_is(
    ranks: int, stub: dict, error: DeltaSaeError, tmp_path: Path
) -> None:
    with pytest.raises(type(error), match=str(error)):
        list(run_units(UNITS, Stub(tmp_path, **stub), GangConfig(ranks=ranks)))


@pytest.mark.usefixtures("ray_cluster")
def test_threads_follow_the_cores_of_the_node_and_the_gangs_that_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deltasae_ray.runtime.nodes.cores", lambda: 16)
    assert cores_per_rank(1, gangs=1, cpus=1, gpus=0) == 16
    assert cores_per_rank(2, gangs=2, cpus=1, gpus=0) == 4
    assert cores_per_rank(1, gangs=8, cpus=1, gpus=0) == 8, (
        "this node of 2 CPUs holds no more than two gangs of one"
    )
    assert cores_per_rank(4, gangs=8, cpus=2, gpus=0) == 4
    assert cores_per_rank(32, gangs=1, cpus=1, gpus=0) == 1


def test_no_work_starts_no_gang(tmp_path: Path) -> None:
    assert list(run_units([], Stub(tmp_path, refuse=True), GangConfig())) == []
