"""The one place that decides where a path may lead: names from stored data stay in their folder, and `~` is
the user's home."""

import os
import re
from pathlib import Path, PurePosixPath

from deltasae_ray.errors import ConfigError, StorageError

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_VARIABLE = re.compile(r"\$(\{[^}]*\}|[A-Za-z_]\w*)")
_HALF_SCHEME = re.compile(
    r"(s3a?|gs|gcs|hf|file|https?|hdfs|abfss?|az|adl|dbfs|wasbs?):(?!//)", re.IGNORECASE
)
"""Where an address lost slashes, by a slip or by a library that normalised it as a path."""

_NEVER = ("\\", "\0")


def _is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8: JSON may hold halves of surrogate pairs, of which no file
    system makes a name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def inside(folder: str, name: str) -> str:
    """Joins a name that came from stored data, an adapter or a dictionary to the folder that it must stay in.

    Works on keys of a storage root and on local paths alike, and looks at the text only; `inside_local` also
    follows symlinks.

    Raises:
        StorageError: the name is empty, absolute, no text, holds a backslash or NUL, or a `..`; the text
            names folder and name.
    """
    parts = PurePosixPath(name).parts
    if (
        not parts
        or any(c in name for c in _NEVER)
        or name.startswith("/")
        or ".." in parts
        or not _is_text(name)
    ):
        raise StorageError(
            f"{name!r} in the records of {folder or 'the storage root'} leads out of that folder or is no"
            " file name; nothing was touched. The record is damaged or was tampered with: remove it and run"
            " again"
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
            f"{path} leads out of {folder} by a symlink; nothing was touched. Replace the symlink by what it"
            " points to and run again; only the folder that storage.root names may itself be one"
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


def expanded(path: str, word: str = "path") -> str:
    """Replaces a leading `~` or `~user` of a local path, also behind `file://`; other URIs and hub ids stay
    as they are.

    Args:
        word: what the user wrote the path behind, for the error.

    Raises:
        ConfigError: the path is blank, has white space around it or control characters in it, holds a
            variable such as `$HOME` that no shell replaced, begins with the `~` of a user who is not known,
            or like an address that lost a slash.
    """
    if not isinstance(path, str) or not path.strip():
        raise ConfigError(f"{word}={path!r} is empty: an unset variable? Give a path, or leave {word} out")
    if path != path.strip() or _UNPRINTABLE.search(path):
        raise ConfigError(
            f"{word}={path!r} has white space around it, or control characters or bytes that are no UTF-8 in"
            " it: rename it"
        )
    if variable := _VARIABLE.search(path):
        raise ConfigError(
            f"{word}={path!r} holds the variable {variable[0]}, which no shell has replaced: write the path"
            " out, or, in a shell, "
            f'quote the word with double quotes instead of single ones, "{word}={path}"'
        )
    if scheme := _HALF_SCHEME.match(path):
        raise ConfigError(
            f"{word}={path!r} begins like an address, but has no {scheme[1]}:// and would be a folder called"
            f" {scheme[0]!r}: write {scheme[1].lower()}://…, or ./{path} for a folder of that name"
        )
    scheme, rest = ("file://", path.removeprefix("file://")) if path.startswith("file://~") else ("", path)
    if not rest.startswith("~"):
        return path
    home = os.path.expanduser(rest)
    if home.startswith("~"):
        raise ConfigError(
            f"{word}={path!r}: there is no user {rest.split('/')[0][1:]!r}; a folder of that name is written"
            f" ./{rest}"
        )
    return scheme + home


def below(root: str, key: str) -> str:
    """The address of what lies at `key` below a root; options of an object store (`?region=…`) stay behind
    the path."""
    location, mark, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{location.rstrip('/')}/{key}{mark}{options}"


def with_option(root: str, name: str, value: str) -> str:
    """An address with one more option, unless it says that one already."""
    return root if name in root else f"{root}{'&' if '?' in root else '?'}{name}={value}"


def local_folder(path: str | Path) -> Path:
    """A folder that a library's user names; a leading `~` is the home, and anything else stays as it is.

    Raises:
        ConfigError: the `~` of a user who is not known.
    """
    return Path(expanded(str(path), "folder")) if str(path).startswith("~") else Path(path)


def cache_folder() -> Path:
    """The user's folder for caches: XDG_CACHE_HOME, or ~/.cache where that is unset or, as its specification
    says, not absolute."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if named.startswith("/") else Path.home() / ".cache") / "deltasae_ray"
