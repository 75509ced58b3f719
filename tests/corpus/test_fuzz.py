"""Texts that nobody meant to write: rows of any JSON, and files with bytes changed. Each is read, or refused
by a typed error."""

import bz2
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import windows
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.tally import Tally
from deltasae_ray.corpus.template import read_template
from deltasae_ray.errors import DeltaSaeError
from tests.corpus.reading import read_documents
from tests.corpus.tokenizers import TAGS, byte_tokenizer
from tests.fuzz import LONG, SHORT

Case = tuple[str, bytes, bool]
"""Name of a file, its bytes, and whether its rows are conversations."""

WORDS = st.sampled_from(
    ["<s>", "</s>", "<pad>", "[user]", "\ud800", "\0", "\ufeff", "\r\n", "text", "", " "]
) | st.text(max_size=30)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url", None])}, optional={"text": TEXTS | ANYTHING}
    )
    | ANYTHING,
    max_size=3,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | ANYTHING,
        "content": TEXTS | PARTS | ANYTHING,
        "tool_calls": ANYTHING,
    },
)
CHAT = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(TURN | ANYTHING, max_size=4) | ANYTHING,
        "instruction": TEXTS | ANYTHING, "input": TEXTS | ANYTHING, "output": TEXTS | ANYTHING,
        "tools": ANYTHING, "id": ANYTHING,
    },
)  # fmt: skip
GOOD_CHAT = TEXTS.map(
    lambda t: {
        "messages": [
            {"role": "user", "content": t},
            {"role": "assistant", "content": t + " an answer of some length"},
        ]
    }
)
TEXT = st.fixed_dictionaries({}, optional={"text": TEXTS | ANYTHING, "id": TEXTS | ANYTHING})


def jsonl(rows: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def table(rows: list[str]) -> pa.Table:
    return pa.table(
        {
            "text": [row.encode("utf-8", "replace").decode() for row in rows],
            "id": [str(i) for i in range(len(rows))],
        }
    )


def parquet(rows: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow(rows: list[str], writer: Callable[..., Any] = pa.ipc.new_stream) -> bytes:
    sink, made = pa.BufferOutputStream(), table(rows)
    with writer(sink, made.schema) as out:
        out.write_table(made)
    return sink.getvalue().to_pybytes()


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with some of them overwritten, put in or taken out, or cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(changed)))
        noise = draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b"\xff\xfe", b"\x1f\x8b", b"\xef\xbb\xbf", b"\n", b"\0", b"{", b"\xed\xa0\x80"]
            )
        )
        changed[at : at + draw(st.sampled_from([0, len(noise), 3]))] = noise
    return bytes(changed[: draw(st.integers(0, len(changed)) | st.just(len(changed)))])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(
        st.sampled_from(
            ["rows", "rows", "chat", "chat", "packed", "utf-16", "txt", "parquet", "arrow", "arrow file"]
        )
    )
    texts = draw(st.lists(TEXTS, max_size=4))
    name, chat = "t.jsonl", kind == "chat"
    if kind == "chat":
        data = jsonl(draw(st.lists(CHAT | GOOD_CHAT, max_size=5)))
    elif kind == "txt":
        name, data = "t.txt", " ".join(texts).encode("utf-8", "surrogatepass")
    elif kind == "parquet":
        name, data = "t.parquet", parquet(texts)
    elif kind.startswith("arrow"):
        name, data = "t.arrow", arrow(texts, pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream)
    else:
        data = jsonl(draw(st.lists(TEXT, max_size=5)))
        data = draw(st.sampled_from([gzip.compress, bz2.compress]))(data) if kind == "packed" else data
        data = data.decode().encode("utf-16") if kind == "utf-16" else data
    return name, draw(mutated(data)) if draw(st.booleans()) else data, chat


def check(case: Case) -> None:
    """Documents that come are text that can be cut and hashed; whatever else comes is a DeltaSaeError that
    names the file."""
    name, data, chat = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        found: dict[str, list[Any]] = {}
        for bad_rows in ("error", "skip"):
            tally, tokenizer, cfg = Tally(bad_rows), byte_tokenizer(TAGS), CorpusConfig(context_len=16)
            try:
                found[bad_rows] = list(
                    read_documents(str(path), chat=tokenizer if chat else None, tally=tally)
                )
            except DeltaSaeError as e:
                assert str(path) in str(e) and str(e).isprintable()
                continue
            for document in found[bad_rows]:
                assert document.text.strip() and document.fingerprint and document.id.encode()
                for context in windows(document, "domain", tokenizer, cfg):
                    assert context.tokens[0] == 1 and context.tokens[1] != 1 and context.counted >= 8
                    assert {
                        context.tokens[i]
                        for i in range(context.prompt or 1, len(context.tokens))
                        if i not in context.masked
                    }.isdisjoint({0, 1})
            assert all(note.isprintable() for note in tally.notes())
        assert "error" not in found or found["error"] == found["skip"], (
            "what can be read is the same whichever way"
        )
        built = CorpusConfig(
            path=(str(path),),
            unrelated=(),
            format="chat" if chat else "text",
            bad_rows="skip",
            fit_tokens=100,
        )
        try:
            build_corpus(built, byte_tokenizer(TAGS))
        except DeltaSaeError as e:
            assert str(e)
        assert [p.name for p in Path(folder).iterdir()] == [name] and path.read_bytes() == data


@SHORT
@given(cases())
def test_any_text_is_read_or_refused_by_a_typed_error(case: Case) -> None:
    check(case)


@pytest.mark.prove
@LONG
@given(cases())
def test_any_of_many_texts_is_read_or_refused_by_a_typed_error(case: Case) -> None:
    check(case)


TEMPLATES = st.fixed_dictionaries(
    {}, optional={"chat_template": TEXTS | ANYTHING | st.lists(ANYTHING, max_size=3)}
)


def check_template(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer_config.json").write_bytes(data)
        try:
            template = read_template(Path(folder))
        except DeltaSaeError as e:
            assert "tokenizer_config.json" in str(e)
        else:
            assert (
                template is None
                or isinstance(template, str)
                or all(isinstance(text, str) for text in template.values())
            )


@SHORT
@given((TEMPLATES | ANYTHING).map(json.dumps).map(str.encode).flatmap(mutated))
def test_any_tokenizer_config_gives_a_template_or_a_typed_error(data: bytes) -> None:
    check_template(data)


@pytest.mark.prove
@LONG
@given((TEMPLATES | ANYTHING).map(json.dumps).map(str.encode).flatmap(mutated))
def test_any_of_many_tokenizer_configs_gives_a_template_or_a_typed_error(data: bytes) -> None:
    check_template(data)
