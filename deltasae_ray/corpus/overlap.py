"""Which documents of a corpus stand in texts that given adapters were trained on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deltasae_ray.corpus.documents import check_text, documents_of
from deltasae_ray.corpus.files import TextFile


@dataclass(frozen=True)
class Searched:
    """What is kept of a file that was searched."""

    fingerprints: frozenset[bytes]
    """Those of its documents that were looked for."""
    empty: bool


@dataclass(frozen=True)
class TextSearch:
    """Looks in a file for documents of these fingerprints (picklable)."""

    fingerprints: frozenset[bytes]
    text_field: str
    chat: Any = None
    """A tokenizer, where rows are conversations."""

    def __call__(self, file: TextFile) -> Searched:
        found, empty = set(), True
        for document in documents_of(file, self.text_field, chat=self.chat):
            empty = False
            if (fingerprint := document.fingerprint) in self.fingerprints:
                found.add(fingerprint)
        return Searched(frozenset(found), empty)


def fingerprints_in(searched: Iterable[tuple[TextFile, Searched]], text_field: str) -> set[bytes]:
    """Those found in any file. Raises CorpusError for a text none of whose files holds any."""
    found: set[bytes] = set()
    empty: dict[str, bool] = {}
    for file, of_file in searched:
        found |= of_file.fingerprints
        empty[file.text] = empty.get(file.text, True) and of_file.empty
    check_text(empty, text_field)
    return found
