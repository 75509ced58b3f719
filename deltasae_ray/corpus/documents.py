"""Documents of one file of JSONL, Parquet, Arrow or plain text, or of a text that comes with the package;
streamed."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deltasae_ray.corpus.chat import Chat
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.files import TextFile
from deltasae_ray.corpus.pieces import pieces
from deltasae_ray.corpus.rows import rows_of
from deltasae_ray.corpus.tally import BLANK, Tally
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
    """False where the id is a digest of the text, since the row had none: a second one of that id is the same
    text."""

    @property
    def fingerprint(self) -> bytes:
        """Equal for texts that differ in case and white space only."""
        digest, begun, gap = hashlib.sha256(), False, False
        for piece in pieces(f"{self.prompt} {self.text}"):
            words = " ".join(piece.lower().split())
            if words:
                digest.update(f"{' ' if begun and (gap or piece[0].isspace()) else ''}{words}".encode())
                begun = True
            gap = not words or piece[-1].isspace()
        return digest.digest()[:12]


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


def documents_of(
    file: TextFile, text_field: str = "text", *, chat: Chat | None = None, tally: Tally | None = None
) -> Iterator[Document]:
    """Yields the documents of one file; blank ones are left out, and a missing id becomes a digest of the
    text.

    Args:
        text_field: field that holds the text in rows.
        chat: reads rows as conversations.
        tally: says what becomes of rows that cannot be read, and counts them; None refuses the first.

    Raises:
        CorpusError: the file cannot be read, has no such field, or is not what its name says.
    """
    tally = tally or Tally()
    for where, row in rows_of(file, None if chat else text_field, tally):
        try:
            document = _document(row, text_field, chat, tally, where)
        except CorpusError as e:
            tally.bad(str(e))
            continue
        if document.text.strip():
            yield document
        else:
            tally.note(BLANK, where)


def _document(
    row: dict[str, Any] | str, text_field: str, chat: Chat | None, tally: Tally, where: str
) -> Document:
    """Raises CorpusError: a row that cannot be read, or fields that are no text."""
    if isinstance(row, str):
        raise CorpusError(f"{where}, {row}")
    prompt, text = (
        chat.prompt_and_response(row, tally, where=where) if chat else ("", _text(row, text_field, where))
    )
    id_ = row.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise CorpusError(
            f"{where}: `id` is {type(id_).__name__} {repr(id_)[:60]}: it must be text or a whole number, or"
            " left out"
        )
    id_ = str(id_ or "")
    try:
        digest = hashlib.sha256(f"{prompt}{text}".encode()).hexdigest()[:16]
        id_.encode()
    except UnicodeEncodeError as e:
        half = e.object[e.start]
        raise CorpusError(
            f"{where}, holds half of a surrogate pair ({half!a}), which is no character: write the text anew"
        ) from e
    return Document(id=id_ or digest, text=text, prompt=prompt, named=bool(id_))


def check_text(empty: Mapping[str, bool], text_field: str, tally: Tally) -> None:
    """Raises CorpusError for a path none of whose files holds text, and says what was left out of it."""
    for path in (path for path, is_empty in empty.items() if is_empty):
        left_out = "".join(f". Of all that was read, {note}" for note in tally.notes())
        raise CorpusError(
            f"{path} holds no text: check corpus.path and corpus.text_field={text_field!r}{left_out}"
        )


def _text(row: dict[str, Any], field: str, where: str) -> str:
    text = row.get(field)
    if field not in row or not isinstance(text, str | None):
        problem = f"holds {type(text).__name__} {repr(text)[:60]}" if field in row else "is missing"
        raise CorpusError(f"{where}, has no text in field {field!r}, which {problem}: set corpus.text_field")
    return text or ""
