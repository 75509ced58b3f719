"""One driver at a time on a storage root. A file there says who; that of a dead driver is taken over.

Each driver puts down a claim under a name of its own, then lists all claims, and withdraws if another's owner
lives. Of two drivers the one that writes last sees the other, so that they never both go on: in a folder, and
on any object store whose listings show what was written before. A dead claim has a name that nobody uses
again, so that deleting it cannot hit a living driver.
"""

import json
import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from deltasae_ray.errors import LeaseError, StorageError
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)

BEAT_S = 20.0
"""Seconds between two writes of a claim by its owner."""
STALE_S = 120.0
"""Seconds without one after which an owner whose process cannot be looked at, as on another machine, is taken
for dead."""
_PREFIX = "lease-"
_TRIES = 3
_SETTLE_S = 1.0


@dataclass(frozen=True)
class Claim:
    """Who works on a root. Words of the command line are left out: they may hold passwords."""

    command: str
    host: str
    pid: int
    started: int
    """Clock ticks from boot to the start of the process: pids are given out again, and no clock that is set
    changes this."""
    boot: str
    namespace: str
    """Boot and pid namespace within which `pid` means this process; empty where the system does not say."""
    since: str

    @classmethod
    def of_this_process(cls, command: str) -> "Claim":
        boot, namespace = _here()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            command, socket.gethostname(), os.getpid(), _started(os.getpid()) or 0, boot, namespace, since
        )

    def alive(self) -> bool | None:
        """Whether its process runs; None where that cannot be seen from here."""
        if not self.boot or (self.boot, self.namespace) != _here():
            return None
        started = _started(self.pid)
        return None if started is None and _hidden(self.pid) else started == self.started

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid} on {self.host}, since {self.since})"


@dataclass(frozen=True)
class _Other:
    """Another driver's claim as it was found."""

    key: str
    claim: Claim | None
    """None where the file cannot be understood, as one that a later version wrote."""
    written: float
    silent_s: float

    @property
    def seen(self) -> bool | None:
        """Whether its process runs; None where that cannot be seen from here."""
        return self.claim.alive() if self.claim else None

    @property
    def alive(self) -> bool:
        return self.silent_s <= STALE_S if self.seen is None else self.seen

    def __str__(self) -> str:
        return str(self.claim or "a driver")


class Lease:
    """A claim on a storage root, and the thread that gives signs of life for it."""

    def __init__(self, storage: Storage, claim: Claim, beat_s: float) -> None:
        self.key = f"{_PREFIX}{uuid4().hex[:12]}.json"
        self._storage, self._claim, self._beat_s = storage, claim, beat_s
        self._lost, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._give_signs_of_life, name="lease", daemon=True)

    def take(self) -> None:
        """Raises LeaseError where another driver works on the root."""
        other = self._claimed()
        for _ in range(_TRIES - 1):
            if other is None:
                break
            time.sleep(random.uniform(0.1, 0.5))  # two that began at once have both withdrawn
            other = self._claimed()
        if other is not None and other.seen is None:
            other = self._watched(other)
        if other is not None:
            here = f"end it (kill {other.claim.pid})" if other.claim else ""
            remedy = here if other.seen else f"end it there ({other.silent_s:.0f} s ago it lived)"
            raise LeaseError(
                f"{self._storage.path(other.key)} is the claim of {other}, and two drivers must not write to"
                f" one storage.root: wait until it ends, {remedy}, or choose another storage.root"
            )
        self._thread.start()

    def _watched(self, other: _Other) -> _Other | None:
        """An owner whose process cannot be looked at, once it gives a sign of life; None once it was silent
        for so long that it is dead."""
        log.warning(
            "%s is the claim of %s, silent for %.0f s: waiting for a sign of life. If there is none, this "
            "driver goes on in %.0f s",
            self._storage.path(other.key), other, other.silent_s, STALE_S - other.silent_s,
        )  # fmt: skip
        while True:
            time.sleep(self._beat_s / 4)
            now = self._claimed()
            if now is None or (now.key, now.written) != (other.key, other.written):
                return now

    def check(self) -> None:
        """Raises LeaseError where the root is no longer this driver's."""
        if self._lost.is_set():
            raise LeaseError(
                f"{self._storage.path(self.key)}, this driver's claim on storage.root, is gone: it was"
                " deleted, or another driver took over, as this one had given no sign of life for"
                f" {STALE_S:.0f} s (asleep, or cut off from the store). Nothing made so far is lost: see that"
                " no other driver runs, and start the same command again"
            )

    def end(self) -> None:
        """Takes the claim back. One that cannot be deleted does no harm: its owner will be dead."""
        self._ended.set()
        if self._thread.is_alive():  # else it could write the claim anew
            self._thread.join(self._beat_s)
        with suppress(StorageError):
            self._storage.delete_file(self.key)

    def _claimed(self) -> _Other | None:
        """None if the root is this driver's now; else whose it is, and this driver's claim is withdrawn."""
        self._write()
        if (other := self._another()) is not None:
            self._storage.delete_file(self.key)
        return other

    def _write(self) -> None:
        self._storage.write_json(self.key, asdict(self._claim))

    def _give_signs_of_life(self) -> None:
        while not self._ended.wait(self._beat_s):
            with suppress(StorageError):  # a store that does not answer now may do so at the next beat
                if not self._storage.exists(self.key):
                    self._lost.set()
                    return
                self._write()

    def _another(self) -> _Other | None:
        """A living driver's claim, if there is one; claims of dead ones are deleted."""
        others = self._others()
        dead = [other for other in others if not other.alive]
        for other in dead:
            log.info("%s of %s is taken over: it is dead", self._storage.path(other.key), other)
            self._storage.delete_file(other.key)
        if any(other.seen is None for other in dead):
            time.sleep(
                _SETTLE_S
            )  # one that wakes up just now has looked for its claim and is about to write it
            others = self._others()
        return next((other for other in others if other.alive), None)

    def _others(self) -> list[_Other]:
        written = self._storage.written(_PREFIX)
        now = written.pop(
            self.key, time.time()
        )  # the store's own clock, since this claim is fresh: hosts' clocks may differ
        others = []
        for key, when in sorted(written.items()):
            try:
                claim = Claim(**json.loads(self._storage.read_bytes(key)))
            except StorageError:
                if not self._storage.exists(key):  # withdrawn meanwhile
                    continue
                raise
            except (ValueError, TypeError):
                claim = None
            others.append(_Other(key, claim, when, now - when))
        return others


@contextmanager
def lease(storage: Storage, command: str, *, beat_s: float = BEAT_S) -> Iterator[Lease]:
    """Inside, no other driver that asks for a lease works below the root.

    Args:
        command: the job, told to who is refused.
        beat_s: seconds between signs of life.

    Raises:
        LeaseError: another driver does, alive as far as can be seen; says who, and what to do.
        StorageError: the root cannot be written to or listed.
    """
    taken = Lease(storage, Claim.of_this_process(command), beat_s)
    try:
        taken.take()
        yield taken
    finally:
        taken.end()


def _here() -> tuple[str, str]:
    if not sys.platform.startswith("linux"):
        return "", ""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None if none is seen, or it is dead and only waits for
    its parent to ask."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _hidden(pid: int) -> bool:
    """Whether a process that is not seen is another user's, where /proc shows only one's own."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False
