"""The storage root: a folder, s3:// or gs://, reached through pyarrow.fs. Puts replace whole files; keys are
digests of content."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.fs as pafs

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.fingerprints import file_sha256 as file_sha256
from deltasae_ray.fingerprints import remembered_sha256
from deltasae_ray.json_objects import parse_object
from deltasae_ray.paths import below, checked_folder, inside, inside_local, with_option

_GIVE_UP_S = 60
"""Seconds that Arrow's Google client tries a request that gets no answer; its default is 15 minutes of
silence."""
_DELETES = 32  # requests at once
_ONE_PUT = 4 * 2**20
"""Bytes that an object store surely takes in one request; Arrow uploads what is larger than a part of its own
in several."""


def digest(value: object) -> str:
    """16 hex digits of any JSON-like value; equal values have equal digests on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_digest(paths: Iterable[Path]) -> str:
    """16 hex digits of several files' names and contents; the folder they lie in does not enter."""
    return digest({p.name: remembered_sha256(p) for p in paths})


@dataclass(frozen=True)
class Storage:
    """A root that every process can open from its URI alone (picklable; the file system is opened lazily)."""

    root: str

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.root:
            return pafs.LocalFileSystem(), str(Path(self.root).absolute())
        root = self.root
        if root.startswith("s3://"):
            # one PUT for a small file; Arrow's default is a multipart upload of three requests, left half
            # done by a kill
            root = with_option(root, "allow_delayed_open", "true")
        if root.startswith(("gs://", "gcs://")):
            root = with_option(root, "retry_limit_seconds", str(_GIVE_UP_S))
        try:
            fs, base = pafs.FileSystem.from_uri(root)
        except Exception as e:  # pyarrow raises a different type per scheme
            raise ConfigError(f"storage.root={self.root!r} cannot be opened: {e}") from e
        return fs, base.rstrip("/")

    def __getstate__(self) -> dict:
        return {"root": self.root}

    @property
    def fs(self) -> pafs.FileSystem:
        return self._opened[0]

    @property
    def is_local(self) -> bool:
        """Told by the root alone: opening an object store may ask the network for its region."""
        return "://" not in self.root or self.root.startswith("file://")

    def path(self, key: str) -> str:
        """The file system's path of a key (`fs.open_input_file(storage.path(key))`).

        Every access goes through it, so that nothing outside the root is read, written or deleted whatever a
        record below it says.

        Raises:
            StorageError: the key leads out of the root, by its text or by a symlink below a local root.
        """
        base = self._opened[1]
        if not key:
            return base
        return str(inside_local(Path(base), key)) if self.is_local else inside(base, key)

    def local(self, key: str) -> Path:
        """The key as a local path.

        Raises:
            StorageError: the root is an object store.
        """
        if not self.is_local:
            raise StorageError(f"{below(self.root, key)} is on an object store and has no local path")
        return Path(self.path(key))

    def address(self, key: str) -> str:
        """What a user opens to see a key: a local path, or its URI with the options of the root."""
        return self.path(key) if self.is_local else below(self.root, key)

    def exists(self, key: str) -> bool:
        return self._info(self.path(key)).type == pafs.FileType.File

    def size(self, key: str) -> int | None:
        """Bytes of a file, or None if it is not there."""
        info = self._info(self.path(key))
        return info.size if info.type == pafs.FileType.File else None

    def stamp(self, key: str) -> tuple[int, int] | None:
        """When a file was last written, in ns, and its bytes; None if it is not there."""
        return self._stamp(self.path(key))

    def _stamp(self, path: str) -> tuple[int, int] | None:
        info = self._info(path)
        return (info.mtime_ns or 0, info.size) if info.type == pafs.FileType.File else None

    def list(self, prefix: str, *, suffix: str = "") -> list[str]:
        """Keys of all files below a prefix, sorted; unfinished temporary files are not listed."""
        return sorted(k for k in self.sizes(prefix) if k.endswith(suffix) and "/.tmp-" not in k)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all files below a prefix, by key, from one listing."""
        base = self.path("") + "/"
        infos = self._info(pafs.FileSelector(self.path(prefix), recursive=True, allow_not_found=True))
        return {i.path.removeprefix(base): i.size for i in infos if i.type == pafs.FileType.File}

    def folders(self, prefix: str) -> tuple[str, ...]:
        """Names of the folders directly below a prefix, sorted; none if it is not there."""
        if (
            self.fs.type_name == "gcs"
        ):  # knows objects only, and Arrow makes up folders from their names nowhere but in a whole listing
            parts = [
                key.removeprefix(f"{prefix}/" if prefix else "").split("/") for key in self.sizes(prefix)
            ]
            return tuple(sorted({first for first, *rest in parts if rest}))
        infos = self._info(pafs.FileSelector(self.path(prefix), allow_not_found=True))
        return tuple(sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory))

    def written(self, starts: str) -> dict[str, float]:
        """When each file directly below the root whose name starts so was last written: seconds by the
        store's own clock."""
        infos = self._info(pafs.FileSelector(self.path(""), allow_not_found=True))
        return {
            i.base_name: (i.mtime_ns or 0) / 1e9
            for i in infos
            if i.type == pafs.FileType.File and i.base_name.startswith(starts)
        }

    def _info(self, what: str | pafs.FileSelector) -> Any:
        """Raises StorageError where the store does not answer."""
        try:
            with suppress(
                FileNotFoundError
            ):  # a folder was made between Arrow's failed listing and its look whether there is one
                return self.fs.get_file_info(what)
            return self.fs.get_file_info(what)
        except OSError as e:
            raise StorageError(f"{self.root} cannot be looked at: {e}") from e

    def read_bytes(self, key: str) -> bytes:
        """Raises StorageError, naming the file, if it is not there."""
        try:
            with self.fs.open_input_file(self.path(key)) as f:
                return f.read()
        except (FileNotFoundError, OSError) as e:
            raise StorageError(f"{self.path(key)} cannot be read: {e}") from e

    def write_bytes(self, key: str, data: bytes | memoryview) -> None:
        """Atomic in a folder: a reader sees the old content or the new, never a part.

        On an object store, up to some megabytes are one PUT, and as atomic. More is an upload in parts, which
        the store shows once all are there. pyarrow cannot take such an upload back, so after an error the
        file that it left is deleted, if the store still answers. Callers that need certainty check the file's
        size and hash against its record.

        Raises:
            StorageError: full disk, or no permission; names the file.
        """
        path = self.path(key)
        try:
            if not self.is_local:
                self._upload(path, data)
                return
            folder = Path(path).parent
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".tmp-{uuid4().hex}"
            try:
                with open(temporary, "wb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(
                f"{path} cannot be written: {e}. Free space or choose another storage.root, then run again"
            ) from e

    def _upload(self, path: str, data: bytes | memoryview) -> None:
        size = memoryview(data).nbytes
        before = self._state(path) if size > _ONE_PUT else None  # a smaller one comes whole or not at all
        try:
            with self.fs.open_output_stream(path) as f:
                f.write(data)
        except BaseException:
            if size > _ONE_PUT and (left := self._state(path)) not in (before, None) and left[1] != size:
                with suppress(OSError):
                    self.fs.delete_file(path)
            raise

    def _state(self, path: str) -> tuple[int, int] | None:
        """Size and time of a path, as `stamp` gives them; None also where the store does not say."""
        with suppress(StorageError):
            return self._stamp(path)
        return None

    def read_json(self, key: str) -> dict[str, Any]:
        """Reads an object of JSON, whose missing fields are named with the file.

        Raises:
            StorageError: it is not there, is no JSON, or holds no object.
        """
        return parse_object(self.read_bytes(key), self.path(key))

    def write_json(self, key: str, value: object) -> None:
        self.write_bytes(key, json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode())

    def free_bytes(self) -> int | None:
        """Free space below a local root; None for object stores."""
        if not self.is_local:
            return None
        folder = self.local("")
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def delete_file(self, key: str) -> None:
        """Deletes a file; one that is already gone is no error.

        Raises:
            StorageError: no permission; names the file.
        """
        self._delete(self.fs.delete_file, key)

    def delete_files(self, keys: Iterable[str]) -> None:
        """Deletes as `delete_file` does; on an object store many at a time, as each waits for an answer."""
        with ThreadPoolExecutor(1 if self.is_local else _DELETES) as pool:
            for _ in pool.map(self.delete_file, keys):
                pass

    def delete_folder(self, key: str) -> None:
        """Deletes everything below `key`; a folder that is not there is no error. Symlinks below it go, what
        they point to stays.

        Raises:
            StorageError: no permission, or the whole root; names the folder.
        """
        if not key.strip("/."):
            raise StorageError(f"{self.root} itself is never deleted: name a folder below it")
        if self.fs.type_name == "gcs":
            with suppress(
                OSError
            ):  # Arrow's raises, in the end, for a folder of which no object bears the name
                self.fs.delete_dir(self.path(key))
            for name in self.sizes(key):
                self._delete(self.fs.delete_file, name)
        else:
            self._delete(self.fs.delete_dir, key)

    def _delete(self, delete: Callable[[str], None], key: str) -> None:
        try:
            delete(self.path(key))
        except FileNotFoundError:
            return
        except OSError as e:
            raise StorageError(f"{self.path(key)} cannot be deleted: {e}") from e

    def put_folder(self, local: Path, key: str) -> None:
        """Copies every file of a local folder below `key`."""
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            self.write_bytes(f"{key}/{path.relative_to(local).as_posix()}", path.read_bytes())

    def get_folder(self, key: str, scratch: Path) -> Path:
        """The folder `key` as a local path: itself for a local root, else a copy below `scratch`.
        StorageError where a name leads out."""
        if self.is_local:
            return checked_folder(self.local(key), self.local(""))
        for name in self.list(key):
            target = inside_local(scratch, name.removeprefix(f"{key}/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read_bytes(name))
        return scratch
