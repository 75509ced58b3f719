"""Ends what is left of a Ray once the driver that started it is gone: `python watch.py DRIVER MARK`. Nothing
but the standard library."""

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "DELTASAE_RAY_OF"
"""The environment variable that all processes of one Ray carry; by it, and never by a name, they are
known."""
_GRACE_S = 10.0
"""Ray's own processes end by themselves in a second or two; only what does not is ended here."""
_LOOKS_S = 50.0


def main(driver: int, mark: str, grace_s: float = _GRACE_S) -> None:
    """Waits for the end of the driver, then ends the marked processes and their children for as long as
    there are any. The folder that only they write to may come on stdin meanwhile."""
    wait_for(driver)
    folder = _folder_of_driver()
    left = marked(mark, folder)
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        left = living(left) | marked(mark, folder)
    deadline = time.monotonic() + _LOOKS_S
    while left and time.monotonic() < deadline:
        for pid, _ in living(left):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        left = living(left) | marked(mark, folder)


def wait_for(pid: int) -> None:
    """Returns once the process has ended; by its handle, as its number may be another's a moment later."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it is gone already
    except (OSError, AttributeError):
        # A kernel or a sandbox without such handles must not look like a driver that is gone.
        this = living({(pid, "")})
        while living(this):
            time.sleep(1)
        return
    try:
        looking = select.poll()
        looking.register(handle, select.POLLIN)
        while not looking.poll():
            pass
    finally:
        os.close(handle)


def _folder_of_driver() -> str:
    """What the driver wrote before it ended; without waiting, since another process may hold the other
    end."""
    with suppress(OSError, ValueError):
        os.set_blocking(0, False)
        return (os.read(0, 4096) or b"").decode().strip()
    return ""


def marked(mark: str, folder: str = "") -> set[tuple[int, str]]:
    """Processes whose environment carries the mark, or is wiped while they write below the folder, and their
    descendants; each with its start, which tells it from a later one.

    A process that sets its title, as Ray's agents do, wipes what /proc shows of its environment; and the
    kernel ends their parent, which still has it, together with the driver. Another driver that joined this
    Ray writes there too, and has its own environment.
    """
    wanted, children, pids = f"{MARK}={mark}".encode(), {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            parent, _ = _stat(pid)
            children.setdefault(parent, []).append(pid)
            environment = (entry / "environ").read_bytes().split(b"\0")
            wiped = b"=" not in environment[0]
            if wanted in environment or wiped and folder and _writes_below(entry, folder):
                pids.append(pid)
    every: set[int] = set()
    while pids:
        pid = pids.pop()
        if pid not in every and pid != os.getpid():
            every.add(pid)
            pids += children.get(pid, [])
    return living({(pid, "") for pid in every})


def _writes_below(process: Path, folder: str) -> bool:
    """Whether a process has a file below the folder open to write: who only reads there is somebody else."""
    for link in (process / "fd").iterdir():
        with suppress(OSError, ValueError, StopIteration):
            if os.readlink(link).startswith(f"{folder}/"):
                lines = (process / "fdinfo" / link.name).read_text().splitlines()
                flags = next(line.split()[1] for line in lines if line.startswith("flags:"))
                if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                    return True
    return False


def living(processes: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Finds the processes that still run, each with its start."""
    alive = set()
    for pid, started in processes:
        with suppress(OSError, ValueError):
            _, now = _stat(pid)
            if not started or now == started:
                alive.add((pid, now))
    return alive


def _stat(pid: int) -> tuple[int, str]:
    """Parent and start of a process. Raises ValueError for one that is dead and only waits for its parent to
    ask."""
    state, parent, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if state in "ZX":
        raise ValueError(f"{pid} is dead")
    return int(parent), fields[17]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:]))
