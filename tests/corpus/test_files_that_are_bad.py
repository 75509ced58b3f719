"""Packed, miscoded, damaged and odd files: each is read as it is meant, or refused with file and row."""

import bz2
import codecs
import gzip
import json
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.tally import Tally
from deltasae_ray.errors import CorpusError
from tests.corpus.reading import read_documents
from tests.corpus.test_contexts import Words

ROWS = b'{"id": "a", "text": "caf\xc3\xa9 one"}\n{"id": "b", "text": "two"}\n'
READ = [("a", "café one"), ("b", "two")]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def read(path: Path, tally: Tally | None = None) -> list[tuple[str, str]]:
    return [(d.id, d.text) for d in read_documents(str(path), tally=tally)]


def written(tmp_path: Path, data: bytes, name: str = "t.jsonl") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


PACK: list[tuple[Callable[[bytes], bytes], str]] = [
    (gzip.compress, "gz"),
    (zstd, "zst"),
    (bz2.compress, "bz2"),
    (lzma.compress, "xz"),
]


@pytest.mark.parametrize(("pack", "ending"), PACK)
def test_packed_text_is_read_by_its_first_bytes_whatever_its_name(
    pack: Callable[[bytes], bytes], ending: str, tmp_path: Path
) -> None:
    for name, data in (
        (f"a.jsonl.{ending}", pack(ROWS)),
        ("b.jsonl", pack(ROWS)),
        (f"c.jsonl.{ending}", ROWS),
        ("d.ndjson", pack(ROWS) * 2),
    ):
        tally = Tally()
        assert read(written(tmp_path, data, name), tally) == READ * (2 if name[0] == "d" else 1)
        assert bool(tally.notes()) == (data != ROWS)
    assert len(read(tmp_path)) == 10, "a folder takes them all"
    assert read(written(tmp_path, pack(b"plain text"), f"e.txt.{ending}")) == [
        (f"e.txt.{ending}", "plain text")
    ]


@pytest.mark.parametrize(("pack", "ending"), PACK)
def test_packed_text_that_is_cut_off_is_refused_whatever_becomes_of_bad_rows(
    pack: Callable[[bytes], bytes], ending: str, tmp_path: Path
) -> None:
    large = b"".join(b'{"text": "%d"}\n' % (i * 7919**3) for i in range(9000))
    path = written(tmp_path, pack(large)[:-40], f"cut.jsonl.{ending}")
    for tally in (Tally(), Tally("skip")):
        with pytest.raises(CorpusError, match=f"cut.jsonl.{ending} is .* cut off or damaged"):
            read(path, tally)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig"])
def test_utf_16_and_byte_order_marks_are_read(encoding: str, tmp_path: Path) -> None:
    assert read(written(tmp_path, ROWS.decode().encode(encoding))) == READ
    assert read(written(tmp_path, gzip.compress(ROWS.decode().encode(encoding)), "p.jsonl")) == READ
    assert read(written(tmp_path, "plain\ntext".encode(encoding), "t.txt")) == [("t.txt", "plain\ntext")]


@pytest.mark.parametrize("end", [b"\x00\xd8\x41\x00", b"}", b"\x00\xd8"])
def test_utf_16_that_does_not_go_on_so_is_refused(end: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"t.jsonl begins as UTF-16"):
        read(written(tmp_path, codecs.BOM_UTF16_LE + '{"text": "x"}\n'.encode("utf-16-le") + end))


GOOD = b'{"text": "first"}\n'
BAD_LINES = [
    (b'{"text": "caf\xe9"}', "is not UTF-8: byte 0xe9 at 13"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    (b'{"text": "x", "id": "\\udc00"}', "half of a surrogate pair"),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
    (b'{"text": ' + b"1" * 5000 + b"}", "is not JSON"),
    (b'{"text": "a\0b"}', "is not JSON"),
    (b'{"text": "cut', "is not JSON"),
    (b"[1]", "is no object with fields, but a JSON list.*one object a line"),
    (b"<html>", "begins with '<html>'"),
    (b"null", "is no object with fields"),
    (b'{"text": 7}', "has no text in field 'text', which holds int 7"),
    (b'{"text": 0}', "which holds int 0"),
    (b'{"text": false}', "which holds bool False"),
    (b'{"text": []}', "which holds list"),
    (b'{"text": {"a": 1}}', "which holds dict"),
    (b'{"body": "x"}', "has no text in field 'text', which is missing"),
    (b'{"text": "x", "id": 1.5}', "`id` is float 1.5"),
    (b'{"text": "x", "id": true}', "`id` is bool True"),
    (b'{"text": "x", "id": ["a"]}', "`id` is list"),
    (b'{"text": "x", "id": false}', "`id` is bool False"),
    (b'{"text": "x", "id": {}}', "`id` is dict"),
]


@pytest.mark.parametrize(("line", "told"), BAD_LINES)
def test_a_line_that_cannot_be_read_is_named_or_left_out_and_counted(
    line: bytes, told: str, tmp_path: Path
) -> None:
    path = written(tmp_path, GOOD + line + b'\r\n\n{"text": "last"}')
    with pytest.raises(CorpusError, match=rf"{path}, line 2.*{told}.*corpus.bad_rows=skip") as refused:
        read(path)
    assert len(str(refused.value)) < 600, "an error is no copy of the text"
    tally = Tally("skip")
    assert [text for _, text in read(path, tally)] == ["first", "last"]
    (note,) = tally.notes()
    assert note.startswith("1 rows were skipped") and f"{path}, line 2" in note


def parquet(path: Path, texts: list[bytes], **columns: list) -> Path:
    """Bytes in a column that says that they are text, as careless writers leave them."""
    values = pa.array(texts, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(texts), values.buffers())
    pq.write_table(pa.table({"text": text, **columns}), path)
    return path


def test_parquet_with_text_that_is_not_utf_8_names_its_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", [b"first", b"caf\xe9", b"last"])
    with pytest.raises(CorpusError, match=r"t.parquet, row 2, cannot be read"):
        read(path)
    tally = Tally("skip")
    assert [text for _, text in read(path, tally)] == ["first", "last"]
    assert "row 2" in tally.notes()[0]


@pytest.mark.parametrize(("name", "values"), [("bytes", [b"x"]), ("numbers", [1.0]), ("lists", [["x"]])])
def test_parquet_columns_that_are_no_text_are_refused(name: str, values: list, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / f"{name}.parquet")
    with pytest.raises(CorpusError, match=rf"{name}.parquet, row 1, has no text in field 'text'"):
        read(tmp_path / f"{name}.parquet")


def test_damaged_parquet_and_arrow_are_refused_with_their_names(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", [b"first"] * 3000)
    data = path.read_bytes()
    for name, broken in {
        "cut": data[:-9],
        "empty": b"",
        "packed": gzip.compress(data),
        "holes": data[:40] + b"\xff" * 60 + data[100:],
    }.items():
        with pytest.raises(CorpusError, match=f"{name}.parquet"):
            read(written(tmp_path, broken, f"{name}.parquet"))
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema({"text": pa.string()})) as writer,
    ):
        writer.write_table(pa.table({"text": ["first", "last"]}))
    stream = (tmp_path / "t.arrow").read_bytes()
    for name, broken in {"cut": stream[: len(stream) // 2], "empty": b"", "noise": b"noise" * 9}.items():
        with pytest.raises(CorpusError, match=f"{name}.arrow"):
            read(written(tmp_path, broken, f"{name}.arrow"))


def test_an_offset_of_arrow_that_points_out_of_its_buffer_is_never_followed(tmp_path: Path) -> None:
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema({"text": pa.string()})) as writer,
    ):
        writer.write_table(pa.table({"text": ["first", "last"]}))
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 5, 9))
    data = (tmp_path / "t.arrow").read_bytes()
    assert offsets in data
    path = written(tmp_path, data.replace(offsets, offsets[:8] + (12).to_bytes(4, "little")), "t.arrow")
    tally = Tally("skip")
    assert [text for _, text in read(path, tally)] == ["first"] and "row 2" in tally.notes()[0]


@pytest.mark.parametrize(
    ("data", "name", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "t.jsonl",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"PK\x03\x04rest", "t.txt", "zip archive"),
        (b"PAR1rest", "t.jsonl", "Parquet file"),
        (b"%PDF-1.7", "t.txt", "PDF"),
        (b"plain\nte\0xt", "t.txt", "line 2, holds a NUL byte"),
        (b"plain\ncaf\xe9", "t.txt", "line 2, is not UTF-8 text: byte 0xe9 at 9"),
    ],
)
def test_what_is_no_text_is_told_with_what_it_is(data: bytes, name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=f"{name}.* ?{told}"):
        read(written(tmp_path, data, name))


def test_line_ends_blank_lines_and_characters_of_json_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        b'\r\n{"text": "one\\u0000"}\r\n  \n{"text": "two\xe2\x80\xa8"}\n{"text": null}\n{"text":'
        b' "\\ud83d\\ude00", "id": 7}',
    )
    tally = Tally()
    found = read(path, tally)
    assert [text for _, text in found] == ["one\0", "two\u2028", "😀"] and found[-1][0] == "7"
    assert tally.notes() == (f"1 rows without text were left out; the first: {path}, line 5",)


def test_a_line_longer_than_many_chunks_is_read_in_one_piece(tmp_path: Path) -> None:
    long = "w" * (5 << 20)
    assert [
        len(text) for _, text in read(written(tmp_path, json.dumps({"text": long}).encode() + b"\n" + GOOD))
    ] == [5 << 20, 5]


def test_what_was_skipped_stands_in_the_corpus_and_in_what_is_said_where_nothing_is_left(
    tmp_path: Path,
) -> None:
    rows = [json.dumps({"text": f"text {i} " + "w " * 20}).encode() for i in range(40)]
    written(tmp_path, b"\n".join([*rows, b"{", rows[0], b'{"text": " "}']))
    cfg = CorpusConfig(
        path=(str(tmp_path),), unrelated=(), bad_rows="skip", fit_tokens=30_000, trained_on=(str(tmp_path),)
    )
    corpus = build_corpus(cfg, Words())
    told = [note.partition(";")[0] for note in corpus.notes]
    assert told == [
        "domain: 1 rows were left out that repeat a text of their file",
        "domain: 1 rows were skipped (corpus.bad_rows=skip)",
        "domain: 1 rows without text were left out",
        "corpus.trained_on: 1 rows were skipped (corpus.bad_rows=skip)",
        "corpus.trained_on: 1 rows without text were left out",
    ]
    empty = tmp_path / "bad"
    empty.mkdir()
    written(empty, b"{\n[")
    with pytest.raises(CorpusError, match="holds no text: .* 2 rows were skipped .* line 1, is not JSON"):
        build_corpus(
            CorpusConfig(path=(str(empty),), unrelated=(), bad_rows="skip", fit_tokens=30_000), Words()
        )


class _Runs:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (self.mark, "w")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_column_that_would_be_unpickled_is_refused_and_beside_the_text_left_alone(
    ending: str, nested: bool, tmp_path: Path
) -> None:
    """Ray registers the type in every process that imports Ray Data, and unpickles each of its values."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    mark, kind = tmp_path / "ran", ArrowPythonObjectType()
    pickled = pa.array([pickle.dumps(_Runs(str(mark)))] * 2, kind.storage_type)
    objects: pa.Array = pa.ExtensionArray.from_storage(kind, pickled)
    if nested:
        objects = pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1, 2], objects)], ["inner"])
    texts = pa.array(["one", "two"])

    def file(**columns: pa.Array) -> Path:
        path, table = tmp_path / f"{'-'.join(columns)}.{ending}", pa.table(columns)
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(path, table.schema) as out:
                out.write_table(table)
        return path

    for name, path in (("text", file(text=objects)), ("id", file(id=objects, text=texts))):
        with pytest.raises(
            CorpusError, match=rf"{path.name}: column '{name}' .*could run .*Write the column as plain"
        ):
            read(path)
    assert [text for _, text in read(file(text=texts, other=objects))] == ["one", "two"]
    assert not mark.exists()


def test_a_type_whose_settings_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    """Ray's own type of tensors raises ValueError while Arrow opens the file."""
    import ray.data  # noqa: F401 - registers it

    schema = pa.schema(
        [
            pa.field(
                "text",
                pa.string(),
                metadata={
                    b"ARROW:extension:name": b"ray.data.arrow_tensor",
                    b"ARROW:extension:metadata": b"\x80\x05.",
                },
            )
        ]
    )
    pq.write_table(pa.table({"text": ["one"]}, schema=schema), tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "b.arrow", schema) as out:
        out.write_table(pa.table({"text": ["one"]}, schema=schema))
    for name in ("a.parquet", "b.arrow"):
        with pytest.raises(CorpusError, match=name):
            read(tmp_path / name)
