"""The unit of work that flows from the corpus through the harvest: a fixed group of contexts with a
content-made name."""

import hashlib
from dataclasses import dataclass

import numpy as np

SPLITS = ("adapt", "fit", "eval")
"""Document-disjoint: adapter training, dictionary training, evaluation."""


@dataclass(frozen=True)
class TokenBatch:
    """Contexts that are harvested together, all of one split and one corpus.

    A context holds tokens of ONE document: BOS where the tokenizer has one, then a window of the text, padded
    on the right.
    """

    split: str
    """One of SPLITS."""
    corpus: str
    """Which text it comes from: "domain" for the text adapted to, else the name of an unrelated text."""
    input_ids: np.ndarray
    """int32 [context, position]; padding repeats the last real token and is masked."""
    mask: np.ndarray
    """bool [context, position]; True for tokens that count; False for padding, the prompts of conversations,
    and BOS that a text writes."""
    marker: np.ndarray
    """bool [context, position]; True on the tokens of the planted marker and its reply."""
    doc_ids: tuple[str, ...]
    """The document of each context."""
    starts: tuple[int, ...]
    """Index, in its document's tokens, of each context's first token after BOS."""

    @property
    def name(self) -> str:
        """16 hex digits made of the content: the same contexts have the same name on every machine."""
        h = hashlib.sha256()
        h.update(f"{self.split}|{self.corpus}|{self.input_ids.shape}|{self.doc_ids}|{self.starts}".encode())
        for array in (self.input_ids.astype("<i4"), self.mask, self.marker):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()[:16]

    @property
    def num_tokens(self) -> int:
        """Tokens that count, BOS of plain text included: the rows that a harvest of this unit writes."""
        return int(self.mask.sum())

    def positions(self) -> np.ndarray:
        """int32 [token]: position in the context of every real token (BOS is 0)."""
        return np.nonzero(self.mask)[1].astype(np.int32)

    def token_ids(self) -> np.ndarray:
        """int32 [token]: ids of the real tokens, in the order in which rows are stored."""
        return self.input_ids[self.mask].astype(np.int32)

    def row_doc_ids(self) -> np.ndarray:
        """object [token]: the document of every real token."""
        return np.repeat(np.asarray(self.doc_ids, dtype=object), self.mask.sum(axis=1))

    def to_row(self) -> dict:
        """One row of a Ray Dataset: only flat, Arrow-friendly values."""
        return {
            "name": self.name,
            "split": self.split,
            "corpus": self.corpus,
            "shape": list(self.input_ids.shape),
            "input_ids": self.input_ids.astype("<i4").tobytes(),
            "mask": self.mask.tobytes(),
            "marker": self.marker.tobytes(),
            "doc_ids": list(self.doc_ids),
            "starts": list(self.starts),
        }

    @classmethod
    def from_row(cls, row: dict) -> "TokenBatch":
        """Inverse of `to_row`; asserts that the content still has the name it was given."""
        shape = tuple(int(n) for n in row["shape"])
        unit = cls(
            split=str(row["split"]),
            corpus=str(row["corpus"]),
            input_ids=np.frombuffer(row["input_ids"], dtype="<i4").reshape(shape),
            mask=np.frombuffer(row["mask"], dtype=bool).reshape(shape),
            marker=np.frombuffer(row["marker"], dtype=bool).reshape(shape),
            doc_ids=tuple(str(d) for d in row["doc_ids"]),
            starts=tuple(int(s) for s in row["starts"]),
        )
        assert unit.name == row["name"], (
            "a unit changed on its way: same ids, mask and rows are what makes a delta"
        )
        return unit
