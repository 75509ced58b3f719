"""Documents of one file of JSONL, Parquet, Arrow or plain text, or of a text that comes with the package; streamed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.corpus.chat import prompt_and_response
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.files import PYDOC, TextFile, opened, told
from deltasae_ray.errors import CorpusError
from deltasae_ray.redaction import redact

DOMAIN = "domain"
"""Name of the corpus made of `corpus.path`; unrelated corpora are named after their last path component."""


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
        name = redact(path).removeprefix("builtin:").rstrip("/").split("/")[-1].split(".")[0]
        if name in named:
            raise CorpusError(f"corpus.unrelated names two texts {name!r}: rename one file")
        named[name] = (path,)
    return named


def documents_of(file: TextFile, text_field: str = "text", *, chat: Any = None) -> Iterator[Document]:
    """Yields the documents of one file; blank ones are left out, and a missing id becomes a digest of the text.

    Args:
        text_field: field that holds the text in rows.
        chat: a tokenizer, to read rows as conversations.

    Raises:
        CorpusError: the file cannot be read, has no such field, or is not what its name says.
    """
    for where, row in _rows(file, None if chat else text_field):
        if chat:
            prompt, text = prompt_and_response(row, chat, where=where)
        else:
            prompt, text = "", _text(row, text_field, where)
        if text.strip():
            id_ = str(row.get("id") or "")
            made = hashlib.sha256(f"{prompt}{text}".encode()).hexdigest()[:16]
            yield Document(id=id_ or made, text=text, prompt=prompt, named=bool(id_))


def check_text(empty: Mapping[str, bool], text_field: str) -> None:
    """Raises CorpusError for a path none of whose files holds text."""
    for path in (path for path, is_empty in empty.items() if is_empty):
        raise CorpusError(f"{path} holds no text: check corpus.path and corpus.text_field={text_field!r}")


def _text(row: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(text := row.get(field) or "", str) or field not in row:
        raise CorpusError(f"{where}, has no text in field {field!r}: set corpus.text_field")
    return text


Rows = Iterator[tuple[str, dict[str, Any]]]
"""(file and row, for errors; the row)."""


def _rows(file: TextFile, field: str | None) -> Rows:
    if file.text == PYDOC:
        from pydoc_data.topics import topics

        yield from ((PYDOC, {"id": name, field or "text": text}) for name, text in sorted(topics.items()))
        return
    with told(file.text, file.name), opened(file) as f:
        match file.suffix:
            case "jsonl" | "ndjson":
                yield from _jsonl(f, file.name)
            case "parquet":
                yield from _parquet(f, file.name, field)
            case "arrow":
                yield from _batches(_arrow(f, file.name), file.name)
            case "txt" | "md":
                yield file.name, {"id": file.inner.rsplit("/", 1)[-1], field or "text": _decoded(f.read(), file.name)}
            case suffix:
                raise CorpusError(f"{file.name} ends in .{suffix}: corpus.path takes .jsonl, .parquet, .arrow or .txt files")


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
