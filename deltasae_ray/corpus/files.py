"""The files of a text: a file, a folder, a hub dataset as of one commit, or a text of this package; each as
any process opens it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from deltasae_ray.corpus.tally import briefly
from deltasae_ray.corpus.unpacked import PACKED
from deltasae_ray.errors import CorpusError

BUILTIN = "builtin:"
PYDOC = "builtin:pydoc"
"""Python's own documentation, which is no file."""
_TEXT = ("jsonl", "ndjson", "txt", "md")
"""Formats that may be packed as a whole."""
_READABLE = (*_TEXT, "parquet", "arrow")
_ON_HUB = ("jsonl", "parquet")
"""Of a repository's files; README.md is none of the texts."""
_HUB = "hf://datasets/"


@dataclass(frozen=True)
class HubAccess:
    """How the driver reaches the hub. It travels with the files: the nodes of a cluster need not have its
    environment."""

    endpoint: str
    token: str | None = field(repr=False)


@dataclass(frozen=True)
class TextFile:
    """One file of a text (picklable)."""

    text: str
    """The path of the configuration that it belongs to."""
    root: str
    """URI that its file system is opened by, of a hub dataset with the commit; "" for this machine's."""
    inner: str
    """Path of the file in that file system."""
    name: str
    """Name of the file in errors."""
    size: int = 0
    """Bytes."""
    hub: HubAccess | None = None

    @property
    def local(self) -> bool:
        """Whether it lies on this machine, so that a process on another may not find it."""
        return not self.root

    @property
    def suffix(self) -> str:
        """How the name ends, and of a packed text what stands before that: .jsonl.gz is JSONL."""
        stem, _, last = self.inner.rpartition(".")
        unpacked = stem.rpartition(".")[2] if "." in stem else ""
        return unpacked if last in PACKED and unpacked in _TEXT else last


def files_of(path: str) -> tuple[TextFile, ...]:
    """The files of one path, in order of names. Of a hub dataset the commit is looked up here, once: all
    tasks read the same.

    Args:
        path: `builtin:shakespeare`, `builtin:kjv`, `builtin:pydoc`; a .jsonl, .parquet, .arrow or .txt file,
            or a folder of them (what Hugging Face datasets are saved as), JSONL and text also packed (.gz,
            .zst, .bz2, .xz), local, s3:// or gs://; or such a file or folder of Parquet and JSONL on the hub,
            `hf://datasets/owner/name[@revision][/inside]`. With HF_HUB_OFFLINE=1 that is the copy in the
            hub's cache.

    Raises:
        CorpusError: there is no such file or folder, or none of its files is one that is read.
    """
    if path.startswith(BUILTIN):
        return (_builtin(path),)
    with named_errors(path):
        if not path.startswith(_HUB):
            return _listed(path, path, _READABLE)
        root, access = _commit(path)
        return _listed(path, root, _ON_HUB, access)


@contextmanager
def opened(file: TextFile) -> Iterator[Any]:
    """The file, open to be read as bytes."""
    if file.root == BUILTIN:
        with (resources.files("deltasae_ray.corpus") / "data" / file.inner).open("rb") as f:
            yield f
        return
    fs = _filesystem(file.root, file.hub)[0] if file.root else pafs.LocalFileSystem()
    with fs.open_input_file(file.inner) as f:
        yield f


@contextmanager
def named_errors(text: str, name: str = "") -> Iterator[None]:
    """Turns what a file system raises inside into a CorpusError that names the text."""
    try:
        yield
    except CorpusError:
        raise
    except (
        Exception
    ) as e:  # the hub client raises dozens of types, and offline, gated and misspelt all mean: not to be had
        if text.startswith(_HUB):
            raise CorpusError(f"{text} cannot be read from the hub: {type(e).__name__}: {e}") from e
        if isinstance(e, OSError):
            raise CorpusError(f"{name or text} cannot be read: {briefly(e)}") from e
        raise


def _builtin(path: str) -> TextFile:
    if path == PYDOC:
        return TextFile(path, BUILTIN, "", path)
    name = f"{path.removeprefix(BUILTIN)}.jsonl"
    if "/" in name or "\\" in name or not (resources.files("deltasae_ray.corpus") / "data" / name).is_file():
        raise CorpusError(f"{path} does not exist: builtin texts are shakespeare, kjv and pydoc")
    return TextFile(path, BUILTIN, name, path)


def _commit(path: str) -> tuple[str, HubAccess | None]:
    """A hub dataset as of one commit, whose files are read by ranges: of Parquet, only the columns that are
    asked for travel, and no copy is kept. Where HF_HUB_OFFLINE is set, the folder of the copy in the hub's
    cache. Only rows are fetched, no code.
    """
    from huggingface_hub import HfApi, get_token, snapshot_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    owner, *rest = path.removeprefix(_HUB).split("/")
    name, _, revision = (rest or [""])[0].partition("@")
    inside = rest[1:]
    if not (owner and name) or ".." in (owner, name, revision, *inside):
        raise CorpusError(
            f"{path} is not hf://datasets/owner/name[@revision][/inside], of which no part is .."
        )
    if HF_HUB_OFFLINE:
        root, access = (
            snapshot_download(f"{owner}/{name}", repo_type="dataset", revision=revision or None),
            None,
        )
    else:
        root = (
            f"{_HUB}{owner}/{name}@{HfApi().dataset_info(f'{owner}/{name}', revision=revision or None).sha}"
        )
        access = HubAccess(ENDPOINT, get_token())
    return "/".join([root, *inside]), access


def _listed(
    path: str, root: str, suffixes: Collection[str], hub: HubAccess | None = None
) -> tuple[TextFile, ...]:
    """The files of `path`, which lie at `root`."""
    fs, inner = _filesystem(root, hub)
    root_of_files = "" if isinstance(fs, pafs.LocalFileSystem) else root
    (info,) = fs.get_file_info([inner])
    if info.type == pafs.FileType.File:
        return (TextFile(path, root_of_files, inner, root, info.size or 0, hub),)
    below = pafs.FileSelector(inner, recursive=True, allow_not_found=True)
    below_it = fs.get_file_info(below) if info.type == pafs.FileType.Directory else []
    files = [
        TextFile(path, root_of_files, i.path, i.path, i.size or 0, hub)
        for i in below_it
        if i.type == pafs.FileType.File
    ]
    files = sorted((f for f in files if f.suffix in suffixes), key=lambda f: f.inner)
    if not files:
        raise CorpusError(f"{path} does not exist, or holds no .jsonl, .parquet, .arrow or .txt file")
    return tuple(files)


@lru_cache(maxsize=8)
def _filesystem(root: str, hub: HubAccess | None) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI or local path, and the path in it. Kept, since opening one may ask the network
    (for a bucket's region)."""
    if "://" not in root:
        # Absolute: a task runs in a folder of Ray's.
        return pafs.LocalFileSystem(), str(Path(root).absolute())
    if hub:
        from huggingface_hub import HfFileSystem

        return pafs.PyFileSystem(
            pafs.FSSpecHandler(HfFileSystem(endpoint=hub.endpoint, token=hub.token))
        ), root.removeprefix("hf://")
    try:
        return pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, OSError) as e:
        raise CorpusError(f"{root} cannot be opened: {e}") from e
