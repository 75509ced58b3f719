"""What the budgets of a corpus may need of its documents: of one file, and of all, which is merged from those
(pure)."""

import hashlib
import heapq
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt64

from deltasae_ray.corpus.chat import chat_of
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import Context, Tokenizer, split_of, uniform, windows
from deltasae_ray.corpus.documents import DOMAIN, Document, check_text, documents_of
from deltasae_ray.corpus.files import TextFile
from deltasae_ray.corpus.pieces import PIECE
from deltasae_ray.corpus.tally import NO_ROOM, PIECES, REPEATED, Tally
from deltasae_ray.errors import CorpusError


class Shortlist:
    """The first documents in hash order whose first contexts fill a budget: `take` never reaches
    those after them.

    So a larger budget only adds, a corpus of any size needs memory for its budget only, and the shortlist of
    several files is that of their shortlists.
    """

    def __init__(self, budget: int, before: float = 1.0) -> None:
        """Args: before: documents from this place on are not wanted, since others that fill the budget come
        before them."""
        self.budget, self._before, self._tokens = budget, before, 0
        self._last_first: list[tuple[float, str, list[Context], bytes]] = []

    @property
    def before(self) -> float:
        """The place that a document must come before to stay."""
        if self._tokens < self.budget:
            return self._before
        return -self._last_first[0][0] if self._last_first else 0.0

    def wants(self, order: float) -> bool:
        """Whether a document of this place would stay; asked before its text is cut, which costs more."""
        return order < self.before

    def add(self, order: float, contexts: list[Context], fingerprint: bytes) -> None:
        heapq.heappush(self._last_first, (-order, contexts[0].doc_id, contexts, fingerprint))
        self._tokens += contexts[0].counted
        while self._tokens - (spare := self._last_first[0][2][0].counted) >= self.budget:
            heapq.heappop(self._last_first)
            self._tokens -= spare
            if not self._last_first:
                return

    def merge(self, other: "Shortlist") -> None:
        """Adds the documents of another file's. One that is here already stays as it is: it is the same
        text."""
        here = {doc_id for _, doc_id, _, _ in self._last_first}
        for place, doc_id, contexts, fingerprint in sorted(other._last_first, key=lambda entry: -entry[0]):
            if not self.wants(-place):
                return
            if doc_id not in here:
                self.add(-place, contexts, fingerprint)

    def contexts(self) -> list[list[Context]]:
        """Contexts of each document, documents in hash order."""
        return [contexts for _, _, contexts, _ in sorted(self._last_first, key=lambda entry: -entry[0])]

    def fingerprints(self) -> dict[str, bytes]:
        """Document → fingerprint of its text."""
        return {doc_id: fingerprint for _, doc_id, _, fingerprint in self._last_first}


@dataclass(frozen=True)
class FileShortlists:
    """What is kept of one file."""

    shortlists: dict[str, Shortlist]
    """By split."""
    ids: UInt64[np.ndarray, "id"]
    """Digests of the ids that its rows gave, ascending."""
    empty: bool
    """Whether the document holds no text."""
    tally: Tally = field(default_factory=Tally)
    """What was left out, coerced or fallen back to."""


@dataclass(frozen=True)
class Shortlisting:
    """Makes the shortlists of a file (picklable)."""

    corpus: str
    tokenizer: Tokenizer
    cfg: CorpusConfig
    wanted: Mapping[str, tuple[int, float]]
    """Split → its budget in tokens, and the place from which on no document is wanted."""

    def __call__(self, file: TextFile) -> FileShortlists:
        """Reads a file once. Memory: its shortlists and its ids.

        Raises:
            CorpusError: it cannot be read, is not what its name says, or an id stands in it twice.
        """
        shortlists = {split: Shortlist(*wanted) for split, wanted in self.wanted.items()}
        seen: set[str] = set()
        named, tally = array("Q"), Tally(self.cfg.bad_rows)
        for document in self.documents(file, tally):
            if document.id in seen:
                if not document.named:  # the same text again
                    tally.note(REPEATED, f"{file.name}, document {document.id}")
                    continue
                raise stands_twice(file, document.id)
            seen.add(document.id)
            if document.named:
                named.append(id_digest(document.id))
            doc_id = f"{self.corpus}/{document.id}"
            shortlist = shortlists[split_of(doc_id, self.cfg, unrelated=self.corpus != DOMAIN)]
            order = uniform("order", self.cfg.seed, doc_id)
            if not shortlist.wants(order):
                continue
            if contexts := windows(document, self.corpus, self.tokenizer, self.cfg):
                shortlist.add(order, contexts, document.fingerprint)
            elif document.prompt:
                tally.note(NO_ROOM, doc_id)
            if not document.prompt and len(document.text) > PIECE:
                tally.note(PIECES, doc_id)
        return FileShortlists(
            shortlists, np.sort(np.asarray(named, dtype=np.uint64)), empty=not seen, tally=tally
        )

    def documents(self, file: TextFile, tally: Tally | None = None) -> Iterator[Document]:
        """The documents of a file; without a tally, rows that cannot be read are treated as they were before,
        and not counted again."""
        chat = chat_of(self.cfg, self.tokenizer) if self.corpus == DOMAIN else None
        return documents_of(file, self.cfg.text_field, chat=chat, tally=tally or Tally(self.cfg.bad_rows))


class Merged:
    """The shortlists of all files of a corpus, merged in the order of the files."""

    def __init__(
        self, corpus: str, tokenizer: Tokenizer, cfg: CorpusConfig, budgets: Mapping[str, int]
    ) -> None:
        self._corpus, self._tokenizer, self._cfg = corpus, tokenizer, cfg
        self.shortlists = {split: Shortlist(budget) for split, budget in budgets.items()}
        self._ids = Ids()
        self._empty: dict[str, bool] = {}
        self.tally = Tally(cfg.bad_rows)
        """Of all files so far."""

    def reading(self) -> Shortlisting:
        """What reads the files that are still to come: only for documents that the files before them leave
        room for."""
        wanted = {split: (shortlist.budget, shortlist.before) for split, shortlist in self.shortlists.items()}
        return Shortlisting(self._corpus, self._tokenizer, self._cfg, wanted)

    def add(self, file: TextFile, read: FileShortlists) -> None:
        """Raises CorpusError where an id of this file stands in one before it."""
        if (twice := self._ids.add(read.ids)) is not None:
            raise stands_twice(
                file,
                next(d.id for d in self.reading().documents(file) if d.named and id_digest(d.id) == twice),
            )
        self.tally.add(read.tally)
        self._empty[file.text] = self._empty.get(file.text, True) and read.empty
        for split, shortlist in read.shortlists.items():
            self.shortlists[split].merge(shortlist)

    def check(self) -> None:
        """Raises CorpusError for a path none of whose files holds text."""
        check_text(self._empty, self._cfg.text_field, self.tally)


class Ids:
    """The ids that rows gave, of all files: eight bytes of each, 800 MB for a hundred million documents, at
    which any two of different ids are alike with a chance of 0.0003. Ids that were made of texts are not
    among them: the same one again is the same text.

    Held in ascending runs, each at least twice as long as the next: there are few to look in, and an id is
    copied a few times only.
    """

    def __init__(self) -> None:
        self._runs: list[UInt64[np.ndarray, "id"]] = []

    def add(self, ids: UInt64[np.ndarray, "id"]) -> int | None:
        """Adds ascending digests; returns one that was there already, or None."""
        if not len(ids):
            return None
        for run in self._runs:
            there = run[np.minimum(np.searchsorted(run, ids), len(run) - 1)] == ids
            if there.any():
                return int(ids[there][0])
        self._runs.append(ids)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()])))
        return None


def id_digest(id_: str) -> int:
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big")


def stands_twice(file: TextFile, id_: str) -> CorpusError:
    return CorpusError(f"{file.text}: document id {id_!r} stands twice; a split by document would leak")
