"""The manifest of an evidence folder: the sha256 of every file, and of itself. A changed byte anywhere is
found, and the file named."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.fingerprints import file_sha256
from deltasae_ray.paths import inside_local

MANIFEST, SIGNATURE = "manifest.json", "signature.json"
_FORMAT = 1


def manifest_bytes(files: Mapping[str, str]) -> bytes:
    """The manifest of files (name → sha256); equal files give equal bytes."""
    return _with_own_hash({"format": _FORMAT, "files": dict(sorted(files.items()))})


def _with_own_hash(body: dict) -> bytes:
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps(body | {"sha256_of_the_above": own}, indent=1, ensure_ascii=True) + "\n").encode()


def first_difference(folder: Path) -> str | None:
    """The first file that is not as it was written, with what is wrong with it; None where all are.

    The manifest itself comes first, then the files by name, then files that it does not list. A signature is
    not listed: it is made of the finished folder.

    Raises:
        ConfigError: there is no such folder, or it holds no manifest.
        StorageError: a file cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"verify={folder}: there is no such folder")
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"verify={folder} holds no {MANIFEST}: it is no evidence folder, or was not written to its end"
        )
    try:
        listed = _listed((folder / MANIFEST).read_bytes())
        if listed is None:
            return f"{MANIFEST}: it was changed after it was written"
        for name, sha256 in listed.items():
            path = inside_local(folder, name)
            if not path.is_file():
                return f"{name}: it is missing"
            if file_sha256(path) != sha256:
                return f"{name}: its content differs from the manifest"
        here = sorted(
            p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()
        )
    except OSError as e:
        raise StorageError(f"verify={folder} cannot be read: {e}") from e
    extra = [name for name in here if name not in (*listed, MANIFEST, SIGNATURE)]
    return f"{extra[0]}: it is not in the manifest" if extra else None


def _listed(data: bytes) -> dict[str, str] | None:
    """Name → sha256; None where the manifest is not byte for byte what `manifest_bytes` makes."""
    try:
        files = json.loads(data)["files"]
        if not all(isinstance(part, str) for pair in files.items() for part in pair):
            return None
        return files if manifest_bytes(files) == data else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
