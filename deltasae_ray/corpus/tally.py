"""What reading a text coerced, left out or fell back to, counted for the plan and the page (pure)."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from deltasae_ray.errors import CorpusError
from deltasae_ray.redaction import redact

BadRows = Literal["error", "skip"]

SKIPPED = "rows were skipped (corpus.bad_rows=skip)"
BLANK = "rows without text were left out"
REPEATED = "rows were left out that repeat a text of their file"
PARTS = "turns come as a list of parts, whose texts were joined"
EMPTY = "turns have no content beside their tool calls, which is read as empty"
NO_ROOM = "conversations were left out whose prompt leaves no room for a response in corpus.context_len"
PIECES = "documents were tokenized in pieces, since they are large: tokens may differ at the joins"
WRITTEN = "conversations write special tokens in their own words, which count as those of the template do"


def decoded(how: str) -> str:
    """The kind of a file that was unpacked or transcoded."""
    return f"files were read as {how}, by their first bytes"


def briefly(error: Exception) -> str:
    """Tells an error in one printable line, without the bytes that it is about, which may be the whole
    text."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} at {error.start:,} ({error.reason})"
    text = " ".join(str(error).split())[:300]
    return text if text.isprintable() else repr(text)


@dataclass
class Tally:
    """Counts by kind, with the first place of each; refuses or skips bad rows, as `corpus.bad_rows` says."""

    bad_rows: BadRows = "error"
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Kind → where it was met first, and why."""

    def note(self, kind: str, where: str) -> None:
        """Counts one of `kind`, met at `where`."""
        self.counts[kind] += 1
        self.first.setdefault(kind, where)

    def bad(self, reason: str) -> None:
        """Skips a row that cannot be read, or raises CorpusError with `reason`, which names file and row."""
        if self.bad_rows == "error":
            raise CorpusError(f"{reason} (or leave such rows out with corpus.bad_rows=skip)")
        self.note(SKIPPED, reason)

    def add(self, other: "Tally") -> None:
        """Adds the counts of another file, whose first places come after those that are here."""
        self.counts += other.counts
        self.first = other.first | self.first

    def notes(self) -> tuple[str, ...]:
        """What was counted: a clause for each kind, with the first place, whose address may hold a key that
        the page must not."""
        return tuple(
            redact(f"{count:,} {kind}; the first: {self.first[kind]}")
            for kind, count in sorted(self.counts.items())
        )
