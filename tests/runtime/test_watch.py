"""What is left of a Ray ends after its driver, however that ended; known by a mark and never by a name."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deltasae_ray.runtime import watch

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
DRIVER = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], env={{**os.environ, {watch.MARK!r}: sys.argv[1]}}, start_new_session=True)
time.sleep(300)
"""


def until(reached: Callable[[], object], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(reached())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_outlives_its_driver_is_ended_and_another_s_is_not(end: signal.Signals) -> None:
    mark, other = f"mine-{os.getpid()}-{end}", f"other-{os.getpid()}-{end}"
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], env={**os.environ, watch.MARK: other}
    )
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, mark])
    guard = subprocess.Popen([sys.executable, "-I", "-S", watch.__file__, str(driver.pid), mark, "0.2"])
    try:
        assert until(lambda: watch.marked(mark))
        ((stubborn, _),) = watch.marked(mark)
        time.sleep(0.3)
        assert psutil.pid_exists(stubborn) and guard.poll() is None, "nothing is ended while the driver runs"
        driver.send_signal(end)
        driver.wait()
        assert guard.wait(20) == 0
        assert not watch.marked(mark) and bystander.poll() is None
    finally:
        for process in (guard, driver, bystander):
            process.kill()
            process.wait()
        for pid, _ in watch.marked(mark):
            os.kill(pid, signal.SIGKILL)


DRIVER_OF_ONE_WITHOUT_MARK = f"""
import os, subprocess, sys, time
with open(sys.argv[1] + "/worker.out", "a") as log:
    subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], env={{}}, start_new_session=True, stdout=log)
print("started", flush=True)
time.sleep(300)
"""


def test_a_process_that_wiped_its_environment_is_known_by_the_folder_it_writes_to_and_others_there_are_not_ended(
    tmp_path: Path,
) -> None:
    """Setting a title wipes it, and the parent that still has it ends in the same moment as the driver."""
    session = tmp_path / "session_1"
    session.mkdir()
    (session / "other.log").write_text("")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER_OF_ONE_WITHOUT_MARK, str(session)], stdout=subprocess.PIPE
    )
    with (session / "other.log").open() as read:
        reader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], stdin=read, env={})
    with (session / "driver.log").open("w") as own:
        other = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(300)"], stdout=own
        )  # joined that Ray
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", watch.__file__, str(driver.pid), "nobody", "0.2"], stdin=subprocess.PIPE
    )
    assert guard.stdin and driver.stdout
    try:
        with guard.stdin as line:
            line.write(f"{session}\n".encode())
        assert driver.stdout.readline() == b"started\n"
        ((stubborn, _),) = watch.marked("nobody", str(session))
        driver.kill()
        driver.wait()
        assert guard.wait(20) == 0
        assert not watch.living({(stubborn, "")}) and reader.poll() is None is other.poll()
    finally:
        for process in (guard, driver, reader, other):
            process.kill()
            process.wait()
        for pid, _ in watch.marked("nobody", str(session)):
            os.kill(pid, signal.SIGKILL)


def test_where_the_kernel_gives_no_handle_of_a_process_a_living_driver_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: int) -> int:
        raise PermissionError("no pidfd_open in this sandbox")

    monkeypatch.setattr(os, "pidfd_open", refused)
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"])
    started = time.monotonic()
    threading.Thread(target=driver.wait, daemon=True).start()
    watch.wait_for(driver.pid)
    assert time.monotonic() - started > 1.5


def test_a_driver_that_is_gone_already_is_no_error() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert (
        subprocess.run(
            [sys.executable, "-I", "-S", watch.__file__, str(gone.pid), "nobody", "0.1"], timeout=20
        ).returncode
        == 0
    )
