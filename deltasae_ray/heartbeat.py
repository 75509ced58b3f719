"""Signs of life that the work itself gives, and a small process beside it that ends the work where it stands
still.

A worker process calls `watch` once, and `unit` around each piece of its work. The process beside it, which
nothing that stops the worker stops, reads from shared memory how far the work is and kills the worker with
SIGKILL once a piece takes far longer than the ones before it, or once the worker has been stopped (SIGSTOP)
for a minute. What Ray does about a dead worker then follows.
"""

import atexit
import mmap
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FLOOR_S = 60.0
"""Seconds that any piece of work may take, however short the others are; after as many, a stopped process is
ended."""
FIRST_S = 1800.0
"""Seconds for the first piece of its kind, which compiles, connects and fills caches: as long as torch's
collectives wait."""
LOADING_S = 4 * 3600.0
"""Seconds for what happens once and may have to fetch a model or read a whole harvest."""
FACTOR = 10.0
"""A piece of work may take so many times the median of its kind."""
LABELS: dict[str, str] = {}
"""What logs and metrics call the work of this process: its run, stage, gang and unit."""
_REMEMBERED = 101
_HEADER = struct.Struct("<QddH")
_LABEL = 500
"""Most bytes of what the worker is called."""


@dataclass(frozen=True)
class Limits:
    """Seconds after which work that does not move is taken for stalled."""

    floor_s: float = field(default_factory=lambda: FLOOR_S)
    first_s: float = field(default_factory=lambda: FIRST_S)
    stopped_s: float = field(default_factory=lambda: FLOOR_S)
    labels: dict[str, str] = field(default_factory=lambda: dict(LABELS))
    """Of the driver, as it asked for the work."""

    def of(self, seen: Sequence[float], first_s: float | None = None) -> float:
        """Seconds that the next piece may take, after pieces of the same kind that took `seen`."""
        if not seen:
            return max(self.floor_s, self.first_s if first_s is None else first_s)
        return max(self.floor_s, FACTOR * statistics.median(seen))


@dataclass
class _Piece:
    """Work under way."""

    kind: str
    first_s: float | None
    began: float = field(default_factory=time.monotonic)
    inner_s: float = 0.0
    """Of it that passed in pieces of other kinds."""

    @property
    def own_s(self) -> float:
        return time.monotonic() - self.began - self.inner_s


class Heart:
    """What a worker process writes down of its work, and the process that watches it."""

    def __init__(self, label: str, limits: Limits, tell: Sequence[str] = ()) -> None:
        """
        Args:
            label: what the worker is called where a stall is told.
            tell: command to which the line about a stall is appended; empty where the worker's stderr is
                enough.
        """
        self._limits, self._tell = limits, list(tell)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._file.truncate(_HEADER.size + _LABEL)
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._pieces: list[_Piece] = []
        self._count, self._label = 0, label
        self._write()
        self._watcher = self._start()

    @property
    def watcher(self) -> int:
        """Process id of the watcher."""
        return self._watcher.pid

    def change(self, label: str, limits: Limits) -> None:
        """Another name and limits for what the process does from now on; a watcher that was lost is
        replaced."""
        self._label, self._limits = label, limits
        if self._watcher.poll() is not None:
            self._watcher = self._start()
        self._write()

    def beat(self) -> None:
        """Says that a piece of the innermost kind is done, and the next one begins."""
        if self._pieces:
            piece = self._pieces.pop()
            self._seen[piece.kind].append(piece.own_s)
            self._pieces.append(_Piece(piece.kind, piece.first_s))
        self._write()

    @contextmanager
    def unit(self, kind: str, first_s: float | None = None) -> Iterator[None]:
        """Inside, a piece of work of this kind is under way; a failed one says nothing of how long they
        take."""
        began = time.monotonic()
        self._pieces.append(_Piece(kind, first_s))
        self._write()
        try:
            yield
            self._seen[kind].append(self._pieces[-1].own_s)
        finally:
            self._pieces.pop()
            if self._pieces:
                self._pieces[-1].inner_s += time.monotonic() - began
            self._write()

    def end(self) -> None:
        """Ends the watcher."""
        self._watcher.kill()
        self._watcher.wait()

    def _write(self) -> None:
        """Limit 0 means that the process waits for work, and only a stop counts."""
        self._count += 1
        kind, limit = "", 0.0
        if self._pieces:
            kind = self._pieces[-1].kind
            limit = self._limits.of(self._seen[kind], self._pieces[-1].first_s)
        label = f"{self._label}\0{kind}".encode()[:_LABEL]
        _HEADER.pack_into(self._memory, 0, self._count, limit, self._limits.stopped_s, len(label))
        self._memory[_HEADER.size : _HEADER.size + len(label)] = label

    def _start(self) -> subprocess.Popen:
        # A session of its own: what stops or interrupts the worker's group must not reach it. Without
        # site-packages it starts in 20 ms.
        command = [
            sys.executable,
            "-I",
            "-S",
            __file__,
            str(self._file.fileno()),
            str(os.getpid()),
            *self._tell,
        ]
        package = str(Path(__file__).parents[1])
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        }
        return subprocess.Popen(
            command,
            pass_fds=(self._file.fileno(),),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


_heart: Heart | None = None


def watch(label: str, limits: Limits, tell: Sequence[str] = ()) -> None:
    """Has this process watched from now on; called again, it changes what the process is called, and its
    limits."""
    global _heart
    if _heart is None:
        _heart = Heart(label, limits, tell)
        atexit.register(_heart.end)
    else:
        _heart.change(label, limits)


def beat() -> None:
    """Says that this process' work moves; does nothing in a process that is not watched."""
    if _heart is not None:
        _heart.beat()


@contextmanager
def unit(kind: str, first_s: float | None = None) -> Iterator[None]:
    """Inside, a piece of work of this kind is under way; does nothing in a process that is not watched.

    Args:
        kind: pieces of one kind take about as long as each other; told where one stalls.
        first_s: seconds for the first one; `FIRST_S` where it is not said.
    """
    if _heart is None:
        yield
    else:
        with _heart.unit(kind, first_s):
            yield


def _main(fd: int, worker: int, tell: list[str]) -> None:
    """The watcher: ends itself with the worker, and the worker where it stands still."""
    memory = mmap.mmap(fd, 0)
    last, since, stopped_since = -1, time.monotonic(), 0.0
    while os.getppid() == worker:
        count, limit, stopped_s, length = _HEADER.unpack_from(memory)
        now = time.monotonic()
        if count != last:
            last, since = count, now
        stopped = _stopped(worker)
        stopped_since = (stopped_since or now) if stopped else 0.0
        # One that is not stopped may wait for a peer that is: that one is ended first, and is the one that is
        # told.
        late = limit and now - since > limit + max(1.0, stopped_s / 4)
        if (stopped and now - stopped_since > stopped_s) or late:
            label, _, kind = (
                memory[_HEADER.size : _HEADER.size + length].decode(errors="replace").partition("\0")
            )
            begun = stopped_since if stopped else since
            line = _line(label, worker, kind, now - begun, stopped_s if stopped else limit, stopped=stopped)
            _say(line, tell)
            if os.getppid() == worker:
                os.kill(worker, signal.SIGKILL)
            return
        time.sleep(min(1.0, stopped_s / 20))


def _line(label: str, worker: int, kind: str, seconds: float, limit: float, *, stopped: bool) -> str:
    when = time.strftime("%H:%M:%S", time.gmtime(time.time() - seconds))
    what = "is stopped (SIGSTOP)" if stopped else f"has not moved in its {kind}"
    return (
        f"{label} (pid {worker}) {what} since {when} UTC, for {seconds:.0f} s where the limit is {limit:.0f}"
        " s: it is killed, and its work is done again from what is stored"
    )


def _say(line: str, tell: list[str]) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    if tell:
        try:
            subprocess.run(
                [*tell, line], timeout=30, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except (
            OSError,
            subprocess.TimeoutExpired,
        ) as e:  # nobody hears of it; the worker is ended all the same
            sys.stderr.write(f"the driver was not told: {e}\n")


def _stopped(pid: int) -> bool:
    """Whether the process was stopped by a signal; one that a debugger holds was not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):  # no /proc, as on macOS: work that does not move is seen all the same
        return False


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
