"""Documents from JSONL, Parquet, Arrow, plain text, folders of them, hub datasets or the texts that come with the package; streamed."""

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from deltasae_ray.corpus.chat import prompt_and_response
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.errors import CorpusError

DOMAIN = "domain"
"""Name of the corpus made of `corpus.path`; unrelated corpora are named after their last path component."""
_READABLE = ("jsonl", "ndjson", "parquet", "arrow", "txt", "md")
_ON_HUB = ("jsonl", "parquet")
"""Of a repository's files; README.md is none of the texts."""
_HUB = "hf://datasets/"


@dataclass(frozen=True)
class Document:
    """One text with an id that is unique within its corpus."""

    id: str
    text: str
    prompt: str = ""
    """What stands before the text of a conversation: read by the model, masked everywhere else."""
    named: bool = True
    """False where the id is a digest of the text, since the row had none: a second one of that id is the same text."""

    @property
    def fingerprint(self) -> bytes:
        """Equal for texts that differ in case and white space only."""
        return hashlib.sha256(" ".join(f"{self.prompt} {self.text}".lower().split()).encode()).digest()[:12]


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


def read_documents(path: str, text_field: str = "text", *, chat: Any = None) -> Iterator[Document]:
    """Yields the documents of one path; blank ones are left out, and a missing id becomes a digest of the text.

    Args:
        path: `builtin:shakespeare`, `builtin:kjv`, `builtin:pydoc`; a .jsonl, .parquet, .arrow or .txt file, or a folder of them in order
            of names (what Hugging Face datasets are saved as), local, s3:// or gs://; or such a file or folder of Parquet and JSONL on
            the hub, `hf://datasets/owner/name[@revision][/inside]`.
        text_field: field that holds the text in rows.
        chat: a tokenizer, to read rows as conversations.

    Raises:
        CorpusError: the file is missing, has no such field, is not what its name says, or holds no text.
    """
    empty = True
    for where, row in _rows(path, None if chat else text_field):
        if chat:
            prompt, text = prompt_and_response(row, chat, where=where)
        else:
            prompt, text = "", _text(row, text_field, where)
        if text.strip():
            empty = False
            id_ = str(row.get("id") or "")
            made = hashlib.sha256(f"{prompt}{text}".encode()).hexdigest()[:16]
            yield Document(id=id_ or made, text=text, prompt=prompt, named=bool(id_))
    if empty:
        raise CorpusError(f"{path} holds no text: check corpus.path and corpus.text_field={text_field!r}")


def _text(row: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(text := row.get(field) or "", str) or field not in row:
        raise CorpusError(f"{where}, has no text in field {field!r}: set corpus.text_field")
    return text


Rows = Iterator[tuple[str, dict[str, Any]]]
"""(file and row, for errors; the row)."""


def _rows(path: str, field: str | None) -> Rows:
    if path == "builtin:pydoc":
        from pydoc_data.topics import topics

        yield from ((path, {"id": name, field or "text": text}) for name, text in sorted(topics.items()))
    elif path.startswith("builtin:"):
        folder = resources.files("deltasae_ray.corpus") / "data"
        file = folder / f"{path.removeprefix('builtin:')}.jsonl"
        if not file.is_file():
            raise CorpusError(f"{path} does not exist: builtin texts are shakespeare, kjv and pydoc")
        with file.open("rb") as f:
            yield from _jsonl(f, path)
    else:
        yield from _hub(path, field) if path.startswith(_HUB) else _files(path, field, _READABLE)


def _hub(path: str, field: str | None) -> Rows:
    """A hub dataset's rows, read by ranges of its files as of one commit: of Parquet, only the columns that are asked for travel, and no
    copy is kept. Where HF_HUB_OFFLINE is set, the copy that is in the hub's cache. Only rows are fetched, no code.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    owner, name, *inside = path.removeprefix(_HUB).split("/")
    name, _, revision = name.partition("@")
    try:
        if HF_HUB_OFFLINE:
            root = snapshot_download(f"{owner}/{name}", repo_type="dataset", revision=revision or None)
        else:
            root = f"{_HUB}{owner}/{name}@{HfApi().dataset_info(f'{owner}/{name}', revision=revision or None).sha}"
        yield from _files("/".join([root, *inside]), field, _ON_HUB)
    except CorpusError:
        raise
    except Exception as e:  # the hub client raises dozens of types, and offline, gated and misspelt all mean: not to be had
        raise CorpusError(f"{path} cannot be read from the hub: {type(e).__name__}: {e}") from e


def _files(path: str, field: str | None, suffixes: Collection[str]) -> Rows:
    fs, inner = _filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.File:
        yield from _file(fs, inner, path, field)
        return
    found = fs.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True)) if kind == pafs.FileType.Directory else []
    files = sorted(i.path for i in found if i.type == pafs.FileType.File and _suffix(i.path) in suffixes)
    if not files:
        raise CorpusError(f"{path} does not exist, or holds no .jsonl, .parquet, .arrow or .txt file")
    for file in files:
        yield from _file(fs, file, file, field)


def _suffix(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _file(fs: pafs.FileSystem, inner: str, path: str, field: str | None) -> Rows:
    with fs.open_input_file(inner) as f:
        match _suffix(inner):
            case "jsonl" | "ndjson":
                yield from _jsonl(f, path)
            case "parquet":
                yield from _parquet(f, path, field)
            case "arrow":
                yield from _batches(_arrow(f, path), path)
            case "txt" | "md":
                yield path, {"id": inner.rsplit("/", 1)[-1], field or "text": _decoded(f.read(), path)}
            case suffix:
                raise CorpusError(f"{path} ends in .{suffix}: corpus.path takes .jsonl, .parquet, .arrow or .txt files")


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    try:
        return pafs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise CorpusError(f"{path} cannot be opened: {e}") from e


def _jsonl(lines: Any, path: str) -> Rows:
    for number, line in enumerate(_lines(lines), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise CorpusError(f"{path}, line {number}, is not JSON: {e}") from e
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}, is no object with fields")
        yield f"{path}, line {number}", row


def _lines(file: Any) -> Iterator[bytes]:
    """Lines of a binary file, read by the megabyte: Arrow's files do not iterate."""
    rest = b""
    while chunk := file.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _parquet(file: Any, path: str, field: str | None) -> Rows:
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as e:
        raise CorpusError(f"{path} is not Parquet: {e}") from e
    names = table.schema_arrow.names
    if field is not None and field not in names:
        raise CorpusError(f"{path} has no column {field!r}, only {names}: set corpus.text_field")
    yield from _batches(table.iter_batches(batch_size=1024, columns=[c for c in names if field is None or c in ("id", field)]), path)


def _arrow(file: Any, path: str) -> Iterator[pa.RecordBatch]:
    """A stream, as `Dataset.save_to_disk` writes it, or an Arrow file."""
    try:
        yield from pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid as e:
            raise CorpusError(f"{path} is no Arrow stream or file: {e}") from e
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _batches(batches: Iterator[pa.RecordBatch], path: str) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise CorpusError(f"{path} is not UTF-8 text: {e}") from e
