"""Documents from JSONL, Parquet, plain text or the texts that come with the package."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.errors import CorpusError

DOMAIN = "domain"
"""Name of the corpus made of `corpus.path`; unrelated corpora are named after their last path component."""


@dataclass(frozen=True)
class Document:
    """One text with an id that is unique within its corpus."""

    id: str
    text: str


def corpora(cfg: CorpusConfig) -> dict[str, tuple[str, ...]]:
    """Corpus name → paths: the domain first, then one corpus per unrelated text.

    Raises:
        CorpusError: two unrelated texts have one name.
    """
    named: dict[str, tuple[str, ...]] = {DOMAIN: cfg.path}
    for path in cfg.unrelated:
        name = path.removeprefix("builtin:").rstrip("/").split("/")[-1].split(".")[0]
        if name in named:
            raise CorpusError(f"corpus.unrelated names two texts {name!r}: rename one file")
        named[name] = (path,)
    return named


def read_documents(path: str, text_field: str = "text") -> Iterator[Document]:
    """Yields the documents of one path; blank ones are left out, and a missing id becomes a digest of the text.

    Args:
        path: `builtin:shakespeare`, `builtin:kjv`, `builtin:pydoc`, or a .jsonl, .parquet or .txt file, local, s3:// or gs://.
        text_field: field that holds the text in JSONL and Parquet rows.

    Raises:
        CorpusError: the file is missing, has no such field, is not what its name says, or holds no text.
    """
    empty = True
    for id_, text in _rows(path, text_field):
        if text.strip():
            empty = False
            yield Document(id=id_ or hashlib.sha256(text.encode()).hexdigest()[:16], text=text)
    if empty:
        raise CorpusError(f"{path} holds no text: check corpus.path and corpus.text_field={text_field!r}")


def _rows(path: str, field: str) -> Iterator[tuple[str, str]]:
    if path == "builtin:pydoc":
        from pydoc_data.topics import topics

        yield from sorted(topics.items())
    elif path.startswith("builtin:"):
        folder = resources.files("deltasae_ray.corpus") / "data"
        file = folder / f"{path.removeprefix('builtin:')}.jsonl"
        if not file.is_file():
            raise CorpusError(f"{path} does not exist: builtin texts are shakespeare, kjv and pydoc")
        with file.open("rb") as f:
            yield from _jsonl(f, path, field)
    else:
        yield from _file(path, field)


def _file(path: str, field: str) -> Iterator[tuple[str, str]]:
    fs, inner = _filesystem(path)
    if fs.get_file_info(inner).type != pafs.FileType.File:
        raise CorpusError(f"{path} does not exist or is no file: corpus.path takes .jsonl, .parquet or .txt files")
    suffix = inner.rsplit(".", 1)[-1]
    with fs.open_input_file(inner) as f:
        if suffix in ("jsonl", "ndjson"):
            yield from _jsonl(f, path, field)
        elif suffix == "parquet":
            yield from _parquet(f, path, field)
        elif suffix in ("txt", "md"):
            yield inner.rsplit("/", 1)[-1], _decoded(f.read(), path)
        else:
            raise CorpusError(f"{path} ends in .{suffix}: corpus.path takes .jsonl, .parquet or .txt files")


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    try:
        return pafs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise CorpusError(f"{path} cannot be opened: {e}") from e


def _jsonl(lines, path: str, field: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(lines), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise CorpusError(f"{path}, line {number}, is not JSON: {e}") from e
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise CorpusError(f"{path}, line {number}, has no text in field {field!r}: set corpus.text_field")
        yield str(row.get("id", "")), row[field]


def _lines(file) -> Iterator[bytes]:
    """Lines of a binary file, read by the megabyte: Arrow's files do not iterate."""
    rest = b""
    while chunk := file.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _parquet(file, path: str, field: str) -> Iterator[tuple[str, str]]:
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as e:
        raise CorpusError(f"{path} is not Parquet: {e}") from e
    if field not in table.schema_arrow.names:
        raise CorpusError(f"{path} has no column {field!r}, only {table.schema_arrow.names}: set corpus.text_field")
    columns = [c for c in ("id", field) if c in table.schema_arrow.names]
    for batch in table.iter_batches(columns=columns):
        for row in batch.to_pylist():
            yield str(row.get("id") or ""), row[field] or ""


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise CorpusError(f"{path} is not UTF-8 text: {e}") from e
