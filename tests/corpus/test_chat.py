"""Conversations: content in parts, no content, turns and fields that are no text, and templates that refuse a
row."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.documents import Document
from deltasae_ray.corpus.tally import Tally
from deltasae_ray.errors import CorpusError
from tests.corpus.reading import read_documents
from tests.corpus.tokenizers import TAGS, byte_tokenizer

ANSWER = {"role": "assistant", "content": "an answer"}


def read(tmp_path: Path, *rows: Any, tally: Tally | None = None, alpaca: bool = False) -> list[Document]:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_documents(str(path), chat=byte_tokenizer(TAGS), alpaca=alpaca, tally=tally))


def asked(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}, ANSWER]}


PARTS = [{"type": "text", "text": "what "}, {"type": "text", "text": "is it"}]


@pytest.mark.parametrize(
    "content",
    [PARTS, ["what ", "is it"], [{"text": "what is it", "type": None} | {"type": "text"}], "what is it"],
)
def test_parts_with_text_are_joined(content: Any, tmp_path: Path) -> None:
    tally = Tally()
    (document,) = read(tmp_path, asked(content), tally=tally)
    assert (document.prompt, document.text) == ("[user]what is it</s>[assistant]", "an answer</s>")
    assert sum(tally.counts.values()) == isinstance(content, list)


@pytest.mark.parametrize("alpaca", [False, True])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "part of type 'image_url'"),
        ([*PARTS, {"type": "input_audio"}], "part of type 'input_audio'"),
        ([{"type": "text", "text": None}], "part of type 'text'"),
        ([7], "part int 7"),
        (None, "`content` is missing or null"),
        (7, "`content` is int 7"),
        (True, "`content` is bool True"),
        ({"text": "x"}, "`content` is dict"),
    ],
)
def test_content_that_is_no_text_is_refused_with_its_row_and_turn(
    content: Any, told: str, alpaca: bool, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"c.jsonl, line 2, turn 1: .*" + told.replace("(", r"\(")):
        read(tmp_path, asked("x"), asked(content), alpaca=alpaca)


def test_a_turn_that_calls_tools_has_empty_content_and_its_calls_are_rendered(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]}
    row = {
        "messages": [{"role": "user", "content": "find"}, call, {"role": "tool", "content": "found"}, ANSWER]
    }
    tally = Tally()
    (document,) = read(tmp_path, row, tally=tally)
    assert document.prompt == "[user]find</s>[assistant](search)</s>[tool]found</s>[assistant]"
    assert any("tool calls" in note and "turn 2" in note for note in tally.notes())
    with pytest.raises(CorpusError, match="tool calls, which the alpaca format does not hold"):
        read(tmp_path, row, alpaca=True)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": ["hello", "an answer"]}, "a turn of `messages` is str 'hello'"),
        ({"messages": [None, ANSWER]}, "a turn of `messages` is missing or null"),
        ({"messages": "hello"}, "no conversation"),
        ({"messages": []}, "no conversation"),
        ({"messages": [{"content": "x"}, ANSWER]}, "`role` is missing"),
        ({"messages": [{"role": 3, "content": "x"}, ANSWER]}, "`role` is int 3"),
        ({"messages": [{"role": "user"}, ANSWER]}, "`content` is missing or null"),
        (
            {"messages": [{"role": "system", "content": "x"}, ANSWER]},
            "chat template refuses the conversation: .*no system role",
        ),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "`input` is list"),
        ({"instruction": "x", "input": 0, "output": "z"}, "`input` is int 0"),
        ({"instruction": 3, "input": "", "output": "z"}, "no conversation"),
        ({"instruction": "x", "output": {"a": 1}}, "no conversation"),
        (
            {"conversations": [{"from": "human", "value": "x"}]},
            "has `conversations`.*`from` human is role user, gpt is assistant",
        ),
        (
            {"messages": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
            "have `from` and `value`.*ShareGPT",
        ),
        (
            {"prompt": "x", "completion": "y"},
            "has `prompt` and `completion`.*rename them to instruction and output",
        ),
        ({"text": "x", "n": 1}, "it has n, text"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "model", "content": "y"}]},
            "last turn's role is 'model'.*rename",
        ),
        ({"messages": json.dumps([ANSWER])}, "JSON within JSON"),
    ],
)
def test_a_row_that_is_no_conversation_is_named_or_left_out(row: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=f"c.jsonl, line 2.*{told}"):
        read(tmp_path, asked("x"), row, asked("y"))
    tally = Tally("skip")
    assert [d.prompt for d in read(tmp_path, asked("x"), row, asked("y"), tally=tally)] == [
        "[user]x</s>[assistant]",
        "[user]y</s>[assistant]",
    ]
    (note,) = tally.notes()
    assert note.startswith("1 rows were skipped (corpus.bad_rows=skip); the first: ") and "line 2" in note


def test_a_template_that_wants_turns_to_alternate_is_told_with_the_row(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must"
        " alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    path = tmp_path / "c.jsonl"
    user = {"role": "user", "content": "x"}
    path.write_text(json.dumps({"messages": [user, user, ANSWER]}) + "\n")
    with pytest.raises(
        CorpusError, match="line 1: the chat template refuses the conversation: TemplateError: must alternate"
    ):
        list(read_documents(str(path), chat=byte_tokenizer(template)))


def test_columns_that_are_null_in_a_row_of_parquet_are_as_if_missing(tmp_path: Path) -> None:
    parts = {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text, "image": None}]}
            for role, text in (("user", "y"), ("assistant", "an answer"))
        ]
    }
    for i, row in enumerate([asked("x"), parts, asked("z", tool_calls=None, name=None)]):
        pq.write_table(
            pa.Table.from_pylist([row | {"images": [b"\x00"], "tools": None}]), tmp_path / f"{i}.parquet"
        )
    found = list(read_documents(str(tmp_path), chat=byte_tokenizer(TAGS)))
    assert [d.prompt for d in found] == [f"[user]{c}</s>[assistant]" for c in "xyz"]


def test_a_prompt_that_leaves_no_room_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [asked(f"{i}" + "long " * (8 if i == 3 else 1)) for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = CorpusConfig(path=(str(path),), unrelated=(), format="chat", context_len=48, fit_tokens=30_000)
    assert [note.partition(";")[0] for note in build_corpus(cfg, byte_tokenizer(TAGS)).notes] == [
        "domain: 1 conversations were left out whose prompt leaves no room for a response in"
        " corpus.context_len"
    ]


def test_parquet_without_conversations_is_told_with_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": ["a"], "conversations": [[{"from": "human", "value": "x"}]]}), path)
    with pytest.raises(
        CorpusError,
        match="c.parquet holds no conversations: it has `conversations`.*`from` human is role user",
    ):
        list(read_documents(str(path), chat=byte_tokenizer(TAGS)))


def test_a_split_that_is_empty_since_prompts_leave_no_room_says_so(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps(asked(f"{i} " + "x" * 99)) for i in range(30)))
    tokenizer = byte_tokenizer()
    cfg = CorpusConfig(
        path=(str(path),), unrelated=(), format="chat", chat_template="alpaca", context_len=16, fit_tokens=99
    )
    with pytest.raises(
        CorpusError,
        match="raise corpus.context_len=16.*30 conversations were left out whose prompt leaves no room",
    ):
        build_corpus(cfg, tokenizer)


def test_a_template_that_never_ends_is_refused_and_timers_of_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox limits what a template may reach, and each of its loops, but not loops in loops."""
    monkeypatch.setattr("deltasae_ray.corpus.chat.RENDER_S", 0.5)
    (tmp_path / "c.jsonl").write_text(json.dumps(asked("what is it")))
    endless = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{%"
        " endfor %}{% endfor %}"
    )
    before, signal_handler = signal.setitimer(signal.ITIMER_REAL, 900), signal.getsignal(signal.SIGALRM)
    try:
        with pytest.raises(
            CorpusError,
            match=(
                r"c.jsonl, line 1: the chat template .*not come to an end within 0.5 s.*corpus.chat_template"
            ),
        ):
            list(read_documents(str(tmp_path / "c.jsonl"), chat=byte_tokenizer(endless)))
        assert (
            800 < signal.getitimer(signal.ITIMER_REAL)[0] < 900
            and signal.getsignal(signal.SIGALRM) is signal_handler
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_field_whose_name_cannot_be_printed_is_told_by_its_code(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"\ue000messages": []}))
    with pytest.raises(CorpusError, match=r"it has '\\ue000messages'") as told:
        list(read_documents(str(tmp_path / "c.jsonl"), chat=byte_tokenizer(TAGS)))
    assert str(told.value).isprintable()
