"""A text file's bytes as UTF-8: unpacked and transcoded by its first bytes, never by its name."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa

from deltasae_ray.corpus.tally import Tally, briefly, decoded
from deltasae_ray.errors import CorpusError

PACKED = ("gz", "zst", "zstd", "bz2", "xz")
"""Endings that say how a file is packed, and nothing of what is in it."""
_CHUNK, _HEAD = 1 << 20, 64
_UNPACK = (
    (b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (b"\x28\xb5\x2f\xfd", "zstd", lambda file: pa.CompressedInputStream(file, "zstd")),
    (b"BZh", "bzip2", bz2.BZ2File),
    (b"\xfd7zXZ\x00", "xz", lzma.LZMAFile),
)
_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, which holds no text: fetch the file with `git lfs pull`",
    ),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (b"PAR1", "is a Parquet file: let its name end in .parquet"),
    (b"ARROW1", "is an Arrow file: let its name end in .arrow"),
    (b"%PDF-", "is a PDF: extract its text"),
)


def utf8_chunks(file: Any, name: str, tally: Tally) -> Iterator[bytes]:
    """Yields the bytes of a text file, unpacked, without a byte order mark, and UTF-16 and UTF-32 as UTF-8.

    Raises:
        CorpusError: the file is cut off or damaged, is no text, or is not the UTF-16 that it begins as.
    """
    chunks = _unpacked(file, name, tally)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            break
    for mark, kind in _NO_TEXT:
        if head.startswith(mark):
            raise CorpusError(f"{name} {kind}")
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "") or _guessed(head)
    whole = chain([head.removeprefix(codecs.BOM_UTF8)], chunks)
    if not encoding:
        yield from whole
        return
    tally.note(decoded(encoding.upper()), name)
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in whole:
            yield decoder.decode(chunk).encode()
        decoder.decode(b"", final=True)
    except UnicodeError as e:
        raise CorpusError(
            f"{name} begins as {encoding.upper()} and does not go on so: {briefly(e)}. Save it as UTF-8"
        ) from e


def _unpacked(file: Any, name: str, tally: Tally) -> Iterator[bytes]:
    head = file.read(_HEAD)
    file.seek(0)
    how, unpack = next(((how, unpack) for mark, how, unpack in _UNPACK if head.startswith(mark)), ("", None))
    if unpack is None:
        while chunk := file.read(_CHUNK):
            yield chunk
        return
    tally.note(decoded(how), name)
    try:
        with unpack(file) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as e:
        raise CorpusError(
            f"{name} is {how} that is cut off or damaged: {briefly(e)}. Copy or make the file again"
        ) from e


def _guessed(head: bytes) -> str:
    """Guesses the encoding of a file that begins with ASCII in two or four bytes each; "" for any other."""
    empty = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}.get(empty, "")
