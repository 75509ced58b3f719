"""The one place that decides where a path may lead: names from stored data stay in their folder, and `~` is the user's home."""

import os
from pathlib import Path, PurePosixPath

from deltasae_ray.errors import StorageError

_NEVER = ("\\", "\0")


def _is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8: JSON may hold halves of surrogate pairs, of which no file system makes a name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def inside(folder: str, name: str) -> str:
    """Joins a name that came from stored data, an adapter or a dictionary to the folder that it must stay in.

    Works on keys of a storage root and on local paths alike, and looks at the text only; `inside_local` also follows symlinks.

    Raises:
        StorageError: the name is empty, absolute, no text, holds a backslash or NUL, or a `..`; the text names folder and name.
    """
    parts = PurePosixPath(name).parts
    if not parts or any(c in name for c in _NEVER) or name.startswith("/") or ".." in parts or not _is_text(name):
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
    try:
        stays = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as e:  # symlinks in a circle
        raise StorageError(f"{path} cannot be looked at: {e}") from e
    if not stays:
        raise StorageError(
            f"{path} leads out of {folder} by a symlink; nothing was touched. Replace the symlink by what it points to and run again; only "
            "the folder that storage.root names may itself be one"
        )
    return path


def checked_folder(folder: Path, root: Path) -> Path:
    """Returns a local folder after a look that neither it nor any symlink below it leads out of the root.

    Raises:
        StorageError: as `inside_local`; names the first that does.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(place, name)).is_symlink():
                inside_local(root, path.relative_to(root).as_posix())
    return folder


def expanded(path: str) -> str:
    """Replaces a leading `~` or `~user` of a local path; URIs and hub ids stay as they are."""
    return os.path.expanduser(path) if path.startswith("~") else path
