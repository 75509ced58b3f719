"""sha256 of large files, remembered on the machine: every rank of every gang asks for that of a model of tens of gigabytes."""

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from deltasae_ray.paths import cache_folder

LARGE = 32 * 2**20
"""Bytes from which a file's hash is remembered; smaller ones are hashed as fast as they are looked up."""
_SETTLED_S = 2.0  # a file changed more recently may change again within one tick of its file system's clock


def file_sha256(path: Path) -> str:
    """sha256 of a local file, hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """The same; a large file is read once per machine and change of the file.

    What is remembered counts only while the file's size, inode and both its times (mtime, and ctime, which nothing can set back) are those
    it had when it was hashed. Processes that ask at once wait for the first of them.
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
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = _state(real)
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(note.read_text())
            if known["state"] == before:
                return known["sha256"]
        found = file_sha256(real)
        if _state(real) == before:
            with suppress(OSError):
                scratch = note.with_name(f".tmp-{uuid4().hex}")
                scratch.write_text(json.dumps({"file": str(real), "state": before, "sha256": found}))
                os.replace(scratch, note)
        return found


def _state(path: Path) -> list[int]:
    s = path.stat()
    return [s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]
