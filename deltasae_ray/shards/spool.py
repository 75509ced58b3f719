"""What harvest and fit of a stream say to each other, through one small file: which window may be written, which may be read.

The driver alone writes it; gangs and fit workers look. The shards of window i lie in a harvest's folder of their own below the spool.
"""

import time
from dataclasses import asdict, dataclass, replace

from deltasae_ray.storage import Storage, digest


def spool_key(harvest_key: str) -> str:
    """The folder of the windows that a stream does not keep; `harvest_key` is that of what it keeps."""
    return f"spool/{digest(harvest_key)}"


def window_key(spool: str, index: int) -> str:
    """The folder of one window's shards."""
    return f"{spool}/{index:06d}"


@dataclass(frozen=True)
class Board:
    """How far a stream is."""

    open: int = 0
    """Windows up to this one may be harvested."""
    ready: int = 0
    """Windows up to this one are complete; the first always is."""
    stopped: bool = False
    """One side has failed: the other is to end."""


def read_board(storage: Storage, spool: str) -> Board:
    return Board(**storage.read_json(f"{spool}/board.json"))


def write_board(storage: Storage, spool: str, board: Board) -> None:
    storage.write_json(f"{spool}/board.json", asdict(board))


def change_board(storage: Storage, spool: str, **changes: int | bool) -> None:
    """For one process at a time: it reads, and writes what it read with the changes."""
    write_board(storage, spool, replace(read_board(storage, spool), **changes))  # type: ignore[arg-type]


def wait_until_ready(storage: Storage, spool: str, index: int) -> bool:
    """Whether window `index` is complete: True as soon as it is, False if the stream was stopped before."""
    return _wait(storage, spool, lambda board: board.ready >= index)


def wait_until_open(storage: Storage, spool: str, index: int) -> bool:
    """Whether window `index` may be harvested: True as soon as it may, False if the stream was stopped before."""
    return _wait(storage, spool, lambda board: board.open >= index and not board.stopped)


def _wait(storage: Storage, spool: str, reached) -> bool:  # noqa: ANN001
    while True:
        board = read_board(storage, spool)
        if reached(board):
            return True
        if board.stopped:
            return False
        time.sleep(0.1 if storage.is_local else 2.0)  # object stores charge for every look
