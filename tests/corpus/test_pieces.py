"""Large documents are tokenized in pieces: memory follows a piece, and tokens are those of the whole but at
the joins."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deltasae_ray.corpus import pieces as pieces_module
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import windows
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.documents import Document
from deltasae_ray.corpus.pieces import PIECE, encode, pieces
from tests.corpus.test_contexts import Words, document


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(pieces_module, "PIECE", 40)
    return 40


TEXTS = [
    "",
    "one",
    "one two  three\n\nfour " * 9,
    "w" * 130,
    "w" * 35 + " " * 50 + "w" * 35,
    " " * 200,
    "\u3000".join("abcdefg" * 12),
    "Σίσυφος ΟΔΟΣ " * 9,
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_none_too_long_and_cut_before_white_space(text: str, small: int) -> None:
    found = list(pieces(text))
    assert "".join(found) == text and all(0 < len(piece) <= small for piece in found) or text == ""
    for one, other in zip(found, found[1:], strict=False):
        assert other[0].isspace() or " " not in one[small // 2 :], (
            "cut inside a word only where there is no other place"
        )


@pytest.mark.parametrize("text", TEXTS)
def test_a_fingerprint_is_that_of_the_whole_text(text: str, small: int) -> None:
    for prompt in ("", "A prompt\tof its own, " * 5):
        whole = hashlib.sha256(" ".join(f"{prompt} {text}".lower().split()).encode()).digest()[:12]
        assert Document("a", text, prompt=prompt).fingerprint == whole


def test_a_large_document_gives_the_windows_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = CorpusConfig(context_len=16, max_contexts_per_doc=9)
    whole = windows(document(3000), "domain", Words(), cfg)
    monkeypatch.setattr(pieces_module, "PIECE", 100)
    assert windows(document(3000), "domain", Words(), cfg) == whole, (
        "words are the tokens here, and none is cut"
    )


def test_tokens_beyond_those_that_a_conversation_needs_are_not_made(small: int) -> None:
    class Counting(Words):
        read = 0

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            self.read += len(text)
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokenizer = Counting()
    assert len(encode(tokenizer, "w " * 5000, most=30)) >= 30 and tokenizer.read < 200


def test_a_large_document_is_told(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"{i} " + "word " * (PIECE // 4 if i == 7 else 20)} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (note,) = build_corpus(
        CorpusConfig(path=(str(tmp_path),), unrelated=(), fit_tokens=30_000), Words()
    ).notes
    assert (
        note == "domain: 1 documents were tokenized in pieces, since they are large: tokens may differ at the"
        " joins; the first: domain/7"
    )


_MEASURED = """
import resource, sys
from pathlib import Path
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.files import files_of
from deltasae_ray.corpus.shortlist import Shortlisting
from tests.corpus.tokenizers import byte_tokenizer
tokenizer = byte_tokenizer()
read = Shortlisting("domain", tokenizer, CorpusConfig(), {split: (10**6, 1.0) for split in ("adapt", "fit", "eval")})
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read(files_of(sys.argv[1])[0])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024, sum(len(c) for l in found.shortlists.values() for c in l.contexts()))
"""


def test_no_more_than_a_piece_is_tokenized_at_once() -> None:
    class Longest(Words):
        longest = 0

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            self.longest = max(self.longest, len(text))
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokenizer = Longest()
    assert len(windows(Document("a", "words of a text\n" * 40_000), "domain", tokenizer, CorpusConfig())) == 4
    assert PIECE // 2 < tokenizer.longest <= PIECE


@pytest.mark.prove
def test_a_document_of_twenty_megabytes_takes_memory_for_its_pieces(tmp_path: Path) -> None:
    """With a token a byte, the worst that a tokenizer can do."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "some words of a text\n" * 1_000_000}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(tmp_path / "t.jsonl")],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    megabytes, contexts = map(int, done.stdout.split())
    assert megabytes < 1000 and contexts == 4
