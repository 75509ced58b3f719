"""Which documents of a corpus stand in texts that given adapters were trained on."""

from collections.abc import Iterable
from dataclasses import dataclass

from deltasae_ray.corpus.chat import Chat
from deltasae_ray.corpus.documents import check_text, documents_of
from deltasae_ray.corpus.files import TextFile
from deltasae_ray.corpus.tally import BadRows, Tally


@dataclass(frozen=True)
class Searched:
    """What is kept of a file that was searched."""

    fingerprints: frozenset[bytes]
    """Fingerprints of the text's documents that were looked for."""
    empty: bool
    tally: Tally
    """Rows that were left out."""


@dataclass(frozen=True)
class TextSearch:
    """Looks in a file for documents of these fingerprints (picklable)."""

    fingerprints: frozenset[bytes]
    text_field: str
    chat: Chat | None = None
    """Where rows are conversations."""
    bad_rows: BadRows = "error"

    def __call__(self, file: TextFile) -> Searched:
        fingerprints, empty, tally = set(), True, Tally(self.bad_rows)
        for document in documents_of(file, self.text_field, chat=self.chat, tally=tally):
            empty = False
            if (fingerprint := document.fingerprint) in self.fingerprints:
                fingerprints.add(fingerprint)
        return Searched(frozenset(fingerprints), empty, tally)


def fingerprints_in(
    searched: Iterable[tuple[TextFile, Searched]], text_field: str, tally: Tally
) -> set[bytes]:
    """Fingerprints that any file holds, whose counts are added to `tally`. Raises CorpusError for a text none
    of whose files holds any."""
    fingerprints: set[bytes] = set()
    empty: dict[str, bool] = {}
    for file, of_file in searched:
        fingerprints |= of_file.fingerprints
        tally.add(of_file.tally)
        empty[file.text] = empty.get(file.text, True) and of_file.empty
    check_text(empty, text_field, tally)
    return fingerprints
