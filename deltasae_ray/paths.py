"""The one place that decides where a path may lead: names from stored data stay in their folder, and `~` is the user's home."""

import os
from pathlib import Path, PurePosixPath

from deltasae_ray.errors import StorageError


def inside(folder: str, name: str) -> str:
    """Joins a name that came from stored data, an adapter or a dictionary to the folder that it must stay in.

    Works on keys of a storage root and on local paths alike, and looks at the text only; `inside_local` also follows symlinks.

    Raises:
        StorageError: the name is empty, absolute, holds a backslash or NUL, or a `..`; the text names folder and name.
    """
    parts = PurePosixPath(name).parts
    if not name or "\\" in name or "\0" in name or name.startswith("/") or ".." in parts or not parts:
        raise StorageError(
            f"{name!r} in the records of {folder or 'the storage root'} leads out of that folder or is no file name; nothing was touched. "
            "The record is damaged or was tampered with: remove it and run again"
        )
    return f"{folder.rstrip('/')}/{name}" if folder else name


def inside_local(folder: Path, name: str) -> Path:
    """Joins like `inside`, for a local folder, and follows symlinks.

    Raises:
        StorageError: as `inside`, or a symlink below the folder leads out of it.
    """
    path = Path(inside(str(folder), name))
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StorageError(f"{path} is a symlink that leads out of {folder}; nothing was touched. Replace it by the file that it points to")
    return path


def expanded(path: str) -> str:
    """Replaces a leading `~` or `~user` of a local path; URIs and hub ids stay as they are."""
    return os.path.expanduser(path) if path.startswith("~") else path
