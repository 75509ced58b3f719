"""The rows of one file, each with its place; a row that cannot be read comes as the reason why."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.corpus.chat import CHAT_FIELDS, how_to_convert
from deltasae_ray.corpus.files import PYDOC, TextFile, named_errors, opened
from deltasae_ray.corpus.tally import Tally, briefly
from deltasae_ray.corpus.unpacked import utf8_chunks
from deltasae_ray.errors import CorpusError

Rows = Iterator[tuple[str, dict[str, Any] | str]]
"""(file and row, for errors; the row, or why it cannot be read)."""

_UNREADABLE = (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError)
"""What Arrow raises for a broken file, and a library's extension types for settings that they cannot read."""
_BATCH_ROWS, _BATCH_BYTES = 1024, 64 * 2**20
"""Most rows of Parquet that are decoded at once, and about how many bytes."""


def rows_of(file: TextFile, field: str | None, tally: Tally) -> Rows:
    """Yields the rows of a file in their order.

    Args:
        field: the field that holds the text; None where rows are conversations.

    Raises:
        CorpusError: the file as a whole cannot be read, or its name ends in no format that is read.
    """
    if file.text == PYDOC:
        from pydoc_data.topics import topics

        yield from ((PYDOC, {"id": name, field or "text": text}) for name, text in sorted(topics.items()))
        return
    with named_errors(file.text, file.name), opened(file) as f:
        match file.suffix:
            case "jsonl" | "ndjson":
                yield from _jsonl(utf8_chunks(f, file.name, tally), file.name)
            case "parquet":
                yield from _parquet(f, file.name, field)
            case "arrow":
                yield from _batches(_arrow(f, file.name), file.name, _wanted(field))
            case "txt" | "md":
                text = _text(b"".join(utf8_chunks(f, file.name, tally)), file.name)
                yield file.name, {"id": file.inner.rsplit("/", 1)[-1], field or "text": text}
            case suffix:
                ends = f"ends in .{suffix}" if "." in file.inner.rsplit("/", 1)[-1] else "has no ending"
                json_ = (
                    f". {_ONE_A_LINE}, and end the name in .jsonl"
                    if suffix == "json"
                    else ", by the ends of their names"
                )
                raise CorpusError(
                    f"{file.name} {ends}: corpus.path takes .jsonl, .parquet, .arrow or .txt files{json_}"
                )


_ONE_A_LINE = (
    "JSONL has one object a line; of a file with one long list, write each object on a line of its own"
)


def _jsonl(chunks: Iterable[bytes], path: str) -> Rows:
    for number, line in enumerate(_lines(chunks), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as e:
            yield where, f"is not UTF-8: {briefly(e)}. Save the file as UTF-8"
        except RecursionError:
            yield where, "is nested too deeply to be read"
        except ValueError as e:  # JSONDecodeError, and numbers of more digits than Python reads
            begins = line.strip()[:16].decode(errors="replace")
            yield where, f"is not JSON, and begins with {begins!r}: {briefly(e)}"
        else:
            yield (
                where,
                (
                    row
                    if isinstance(row, dict)
                    else f"is no object with fields, but a JSON {type(row).__name__}. {_ONE_A_LINE}"
                ),
            )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a binary file; a long one is put together once, at its end."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    if last := b"".join(parts):
        yield last


def _parquet(file: Any, path: str, field: str | None) -> Rows:
    try:
        table = pq.ParquetFile(file)
        names, rows = table.schema_arrow.names, max(1, table.metadata.num_rows)
        size = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
    except _UNREADABLE as e:
        raise CorpusError(f"{path} is not Parquet, is packed or is damaged: {briefly(e)}") from e
    if field is not None and field not in names:
        raise CorpusError(f"{path} has no column {field!r}, only {names}: set corpus.text_field")
    if field is None and not {"messages", "instruction"} & set(names):
        raise CorpusError(f"{path} holds no conversations: {how_to_convert(names)}")
    wanted = _wanted(field)
    at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))
    yield from _batches(
        table.iter_batches(batch_size=at_once, columns=[c for c in names if c in wanted]), path, wanted
    )


def _wanted(field: str | None) -> set[str]:
    """The columns that a document is made of."""
    return {"id", *([field] if field is not None else CHAT_FIELDS)}


def _arrow(file: Any, path: str) -> Iterator[pa.RecordBatch]:
    """A stream, as `Dataset.save_to_disk` writes it, or an Arrow file."""
    try:
        yield from pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid as e:
            raise CorpusError(f"{path} is no Arrow stream or file: {briefly(e)}") from e
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _batches(batches: Iterable[pa.RecordBatch], path: str, wanted: set[str]) -> Rows:
    number = 0
    try:
        for batch in batches:
            for row in _values(_data_only(batch, path, wanted)):
                number += 1
                yield f"{path}, row {number}", row
    except CorpusError:
        raise
    except _UNREADABLE as e:
        raise CorpusError(
            f"{path} is damaged after row {number}: {briefly(e)}. Copy or make the file again"
        ) from e


def _data_only(batch: pa.RecordBatch, path: str, wanted: set[str]) -> pa.RecordBatch:
    """Drops columns whose values a library's own code would make: Ray's, of pickled objects, would run what a
    file says.

    Raises:
        CorpusError: such a column is one that documents are made of.
    """
    registered = [f.name for f in batch.schema if _registered_in_code(f.type)]
    for name in registered:
        if name in wanted:
            raise CorpusError(
                f"{path}: column {name!r} is of the type {batch.schema.field(name).type}, whose values are"
                " made by code and could run what the file says: nothing of it was read. Write the column as"
                " plain strings, lists and structs"
            )
    return (
        batch.select([name for name in batch.schema.names if name not in registered]) if registered else batch
    )


def _registered_in_code(kind: pa.DataType) -> bool:
    """Whether a type, or one inside it, is an extension that some Python library registered."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    inner += [kind.value_type] if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else []
    inner += [kind.storage_type] if isinstance(kind, pa.BaseExtensionType) else []
    return isinstance(kind, pa.ExtensionType) or any(map(_registered_in_code, inner))


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; one by one where not all can be read, so that the bad ones are known."""
    try:
        batch.validate(
            full=True
        )  # bytes that came from elsewhere: an offset out of bounds would be read as it is
        values = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        for i in range(batch.num_rows):
            try:
                one = batch.slice(i, 1)
                one.validate(full=True)
                value = one.to_pylist()[0]
            except (
                pa.ArrowException,
                ValueError,
                OverflowError,
            ) as e:  # of UTF-8 and of dates that Python does not have
                value = f"cannot be read: {briefly(e)}"
            yield value
    else:
        yield from values


def _text(data: bytes, path: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise CorpusError(
            f"{path}, line {line}, is not UTF-8 text: {briefly(e)}. Save the file as UTF-8"
        ) from e
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise CorpusError(
            f"{path}, line {line}, holds a NUL byte: it is no text, or UTF-16 without a mark. Save it as"
            " UTF-8"
        )
    return text
