"""A large text in pieces, so that a tokenizer's memory is bounded by a piece and not by the text (pure)."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Protocol

PIECE = 1 << 18
"""Characters that are tokenized at once. A text of at most so many gives the tokens that it always gave."""


class Encoder(Protocol):
    """The method of a transformers tokenizer that makes ids of a text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def pieces(text: str) -> Iterator[str]:
    """Cuts a text into pieces of at most PIECE characters, before white space if a piece's second half has
    any."""
    start = 0
    while len(text) - start > PIECE:
        middle, end = start + PIECE // 2, start + PIECE
        cut = max(text.rfind(" ", middle, end), text.rfind("\n", middle, end))
        while cut > middle and text[cut - 1].isspace():
            cut -= 1
        end = cut if cut > middle else end
        yield text[start:end]
        start = end
    yield text[start:]


def encode(tokenizer: Encoder, text: str, most: int | None = None) -> Sequence[int]:
    """The token ids of a text.

    A text of more than PIECE characters is tokenized piece by piece: its tokens may differ from those of the
    whole where two pieces meet, and nowhere else.

    Args:
        most: pieces after the one that reaches so many tokens are not looked at. None: the whole text.
    """
    if len(text) <= PIECE:
        return tokenizer.encode(text, add_special_tokens=False)
    ids = array("i")
    for piece in pieces(text):
        ids.extend(tokenizer.encode(piece, add_special_tokens=False))
        if most is not None and len(ids) >= most:
            break
    return ids
