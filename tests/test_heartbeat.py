"""Work that stands still is ended by the process beside it, and told; work that moves, and a worker that
waits for work, are left alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deltasae_ray.heartbeat import FACTOR, FIRST_S, FLOOR_S, Limits

WORKER = """
import sys, time
from deltasae_ray import heartbeat
tell = [sys.executable, "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])", sys.argv[1]]
heartbeat.watch("rank 1 of 2 of gang ab12 on node 10.0.0.3", heartbeat.Limits(0.3, 0.6, 0.3), tell)
print(heartbeat._heart.watcher, flush=True)
exec(sys.argv[2])
"""


def worker(tmp_path: Path, work: str) -> tuple[subprocess.Popen, int, Path]:
    """A watched process, its watcher, and the file where a stall is told."""
    told = tmp_path / "told"
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(told), work], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline()), told


def test_a_stopped_process_is_told_and_killed_in_the_middle_of_a_unit_and_between_units(
    tmp_path: Path,
) -> None:
    for name, work in (
        ("at-work", "with heartbeat.unit('unit', 100): time.sleep(60)"),
        ("idle", "time.sleep(60)"),
    ):
        (tmp_path / name).mkdir()
        process, watcher, told = worker(tmp_path / name, work)
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        assert process.wait(10) == -signal.SIGKILL
        line = told.read_text()
        assert line.startswith(
            f"rank 1 of 2 of gang ab12 on node 10.0.0.3 (pid {process.pid}) is stopped (SIGSTOP) since "
        ), line
        gone(watcher)


def test_a_unit_far_longer_than_those_before_it_is_a_stall_and_a_first_one_has_its_own_limit(
    tmp_path: Path,
) -> None:
    slow_first = "for s in (0.4, 0.01, 0.01, 0.01, 60):\n  with heartbeat.unit('fit step', 5): time.sleep(s)"
    process, _, told = worker(tmp_path, slow_first)
    assert process.wait(15) == -signal.SIGKILL
    assert (
        "has not moved in its fit step since" in told.read_text() and "the limit is 0 s" in told.read_text()
    )


def test_work_that_moves_and_a_worker_without_work_are_left_alone(tmp_path: Path) -> None:
    """Longer in all than any limit, with a second of grace."""
    work = """
with heartbeat.unit('read'):
    for _ in range(20):
        with heartbeat.unit('step'): time.sleep(0.05)
time.sleep(1.5)
with heartbeat.unit('wait'):
    for _ in range(20):
        heartbeat.beat(); time.sleep(0.05)
"""
    process, watcher, told = worker(tmp_path, work)
    assert process.wait(15) == 0 and not told.exists()
    gone(watcher)


def test_limits_are_ten_times_the_median_and_at_least_a_minute() -> None:
    assert (FLOOR_S, FACTOR) == (60, 10)
    assert Limits().of([]) == FIRST_S and Limits().of([], 7200) == 7200
    assert Limits().of([0.1, 0.2, 30]) == 60 and Limits().of([20, 30, 900]) == 300


def test_the_watcher_of_a_killed_worker_ends_itself(tmp_path: Path) -> None:
    process, watcher, told = worker(tmp_path, "time.sleep(60)")
    process.kill()
    process.wait()
    gone(watcher)
    assert not told.exists()


def gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the watcher lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("tell", ["false", "/no/such/command"])
def test_a_stall_that_cannot_be_told_is_ended_all_the_same(tell: str) -> None:
    code = (
        "from deltasae_ray import heartbeat; heartbeat.watch('w', heartbeat.Limits(0.2, 0.2, 0.2),"
        f" ['{tell}'])\nwith heartbeat.unit('u'): import time; time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == -signal.SIGKILL and "w (pid" in done.stderr
