"""sha256 of large files, remembered on the machine: every rank of every gang asks for that of a model of tens
of gigabytes."""

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from deltasae_ray.paths import cache_folder

LARGE = 32 * 2**20
"""Bytes from which a file's hash is remembered; smaller ones are hashed as fast as they are looked up."""
_LOCK_S = 1800.0
"""Seconds to wait for another process that hashes the same file."""
_SETTLED_S = 2.0  # a file changed more recently may change again within one tick of its file system's clock


def file_sha256(path: Path) -> str:
    """sha256 of a local file, hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """The sha256 of a file; a large one is read once per machine and change of the file.

    What is remembered counts only while the file's size, inode and both its times (mtime, and ctime, which
    nothing can set back) are those it had when it was hashed. Processes that ask at once wait for the first
    of them.
    """
    real = path.resolve()
    at = real.stat()
    if at.st_size < LARGE or time.time() - at.st_ctime < _SETTLED_S:
        return file_sha256(real)
    folder = cache_folder() / "sha256"
    note = folder / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(note.with_suffix(".lock"), "w")  # noqa: SIM115 - an error of the body must not be taken for one of the cache
    except OSError:  # no home, or one that may not be written: then it is hashed each time
        return file_sha256(real)
    with lock:
        if not locked(lock, _LOCK_S):  # whoever has it was stopped: what it would have noted is found here
            return file_sha256(real)
        before = _state(real)
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(note.read_text())
            if known["state"] == before:
                return known["sha256"]
        digest = file_sha256(real)
        if _state(real) == before:
            with suppress(OSError):
                scratch = note.with_name(f".tmp-{uuid4().hex}")
                scratch.write_text(json.dumps({"file": str(real), "state": before, "sha256": digest}))
                os.replace(scratch, note)
        return digest


def locked(file: IO, within: float) -> bool:
    """Whether this process has the lock of an open file now; False where another kept it all the while."""
    end = time.monotonic() + within
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)


def _state(path: Path) -> list[int]:
    s = path.stat()
    return [s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]
