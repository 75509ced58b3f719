"""What harvest and fit of a stream say to each other, through one small file: which window may be written,
which may be read.

The driver alone writes it; gangs and fit workers look. It is written again every few seconds, so that who
waits can tell a driver that has nothing to say from one that is gone. The shards of window i lie in a
harvest's folder of their own below the spool.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace

from deltasae_ray import heartbeat
from deltasae_ray.errors import StorageError
from deltasae_ray.storage import Storage, digest

log = logging.getLogger(__name__)
BEAT_S = 20.0
"""Seconds after which the driver writes a board again that has not changed."""
SILENT_S = 300.0
"""Seconds, by the clock of who looks, after which a board that nobody writes has lost its driver."""
LOOK_S, LOOK_REMOTELY_S = 0.1, 2.0
"""Seconds between two looks at the board; object stores charge for every one."""
SPOOLS = "spool"


def spool_key(harvest_key: str) -> str:
    """The folder of the windows that a stream does not keep; `harvest_key` is that of what it keeps."""
    return f"{SPOOLS}/{digest(harvest_key)}"


def window_key(spool: str, index: int) -> str:
    """The folder of one window's shards."""
    return f"{spool}/{index:06d}"


def window_folder(harvest_key: str, spool: str, index: int) -> str:
    """The folder of a window of a harvest, whose first window is the harvest itself, and stays."""
    return window_key(spool, index) if index else harvest_key


@dataclass(frozen=True)
class Board:
    """How far a stream is."""

    open: int = 0
    """Windows up to this one may be harvested."""
    ready: int = 0
    """Windows up to this one are complete; the first always is."""
    stopped: bool = False
    """One side has failed: the other is to end."""
    beat: int = 0
    """Another number at every writing, also in a later run."""


def read_board(storage: Storage, spool: str) -> Board:
    """Raises StorageError where the board is not there or is none."""
    board = storage.read_json(name := f"{spool}/board.json")
    wanted = {f.name: type(f.default) for f in fields(Board)}
    if {field: type(value) for field, value in board.items()} != wanted:
        raise StorageError(
            f"{storage.path(name)} is no board of a stream: delete the folder {spool} and run again"
        )
    return Board(**board)


def write_board(storage: Storage, spool: str, board: Board) -> None:
    storage.write_json(f"{spool}/board.json", asdict(board))


class BoardWriter:
    """The driver's hand. What cannot be written now is written with the next beat: only a storage that fails
    for long ends a study."""

    def __init__(self, storage: Storage, spool: str, board: Board) -> None:
        """Raises StorageError where nothing can be written at all."""
        self._storage, self._spool, self._board = storage, spool, replace(board, beat=time.time_ns())
        self._lock = threading.Lock()
        write_board(storage, spool, self._board)
        self.error: StorageError | None = None
        """Why the board is not what it should be, while that is so."""

    @property
    def stopped(self) -> bool:
        return self._board.stopped

    def change(self, **changes: int | bool) -> None:
        """Writes the board with the changes. A stopped one changes no more: who sees it stopped must not be
        waited for."""
        with self._lock:
            changed = self._board if self._board.stopped else replace(self._board, **changes)  # type: ignore[arg-type]
            self._board = replace(changed, beat=self._board.beat + 1)
            try:
                write_board(self._storage, self._spool, self._board)
                self.error = None
            except StorageError as e:
                self.error = e

    def stop(self) -> None:
        """Neither side is to wait for the other any more."""
        self.change(stopped=True)


@contextmanager
def writing_board(storage: Storage, spool: str, board: Board) -> Iterator[BoardWriter]:
    """While the body runs, the board is alive; afterwards it is stopped.

    Raises:
        StorageError: the board cannot be written at all.
    """
    writer, over = BoardWriter(storage, spool, board), threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            writer.change()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        over.set()
        thread.join()
        writer.stop()


def wait_until_ready(storage: Storage, spool: str, index: int) -> bool:
    """Whether window `index` is complete: True as soon as it is, False if the stream was stopped before, or
    its driver is gone."""
    return _wait(storage, spool, lambda board: board.ready >= index)


def wait_until_open(storage: Storage, spool: str, index: int) -> bool:
    """Whether window `index` may be harvested: True as soon as it may, False if the stream was stopped
    before, or its driver is gone."""
    return _wait(storage, spool, lambda board: board.open >= index and not board.stopped)


def _wait(storage: Storage, spool: str, reached: Callable[[Board], bool]) -> bool:
    with heartbeat.unit("wait for the other side of the stream"):  # which has a limit of its own, SILENT_S
        return _waited(storage, spool, reached)


def _waited(storage: Storage, spool: str, reached: Callable[[Board], bool]) -> bool:
    last, since = -1, time.monotonic()
    while True:
        heartbeat.beat()
        board = read_board(storage, spool)
        if reached(board):
            return True
        if board.beat != last:
            last, since = board.beat, time.monotonic()
        if board.stopped or time.monotonic() - since > SILENT_S:
            return False
        time.sleep(LOOK_S if storage.is_local else LOOK_REMOTELY_S)


class OtherSpools:
    """The windows that other streams below a root have left there, and whether anybody still works on
    them."""

    def __init__(self, storage: Storage, own: str) -> None:
        self._storage, self._own, self._since = storage, own, time.monotonic()
        self._before = self._beats()

    def remove_abandoned(self) -> list[str]:
        """Deletes those whose boards stood still from this object's birth until now, if that was long enough;
        their keys.

        A study that is continued later harvests what it finds missing, which is two windows at most.
        """
        if time.monotonic() - self._since <= SILENT_S:
            return []
        now = self._beats()
        gone = [spool for spool, beat in self._before.items() if now.get(spool) == beat]
        return [spool for spool in gone if self._removed(spool)]

    def _removed(self, spool: str) -> bool:
        try:
            self._storage.delete_folder(spool)
        except StorageError as e:  # no reason to fail a study that has nothing to do with it
            log.warning("%s", e)
            return False
        return True

    def _beats(self) -> dict[str, int]:
        """Spool → beat of its board; -1 where there is none, as after a deletion that was cut off."""
        names = self._storage.list(SPOOLS)
        beats = dict.fromkeys(sorted({"/".join(name.split("/")[:2]) for name in names} - {self._own}), -1)
        for spool in beats:
            with suppress(StorageError):  # deleted since it was listed
                beats[spool] = self._storage.read_json(f"{spool}/board.json").get("beat", 0)
        return beats
