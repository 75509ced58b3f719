"""Conversations: each becomes a prompt, which the model reads, and a response, whose tokens are studied."""

import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.special import roles_of
from deltasae_ray.corpus.tally import EMPTY, PARTS, WRITTEN, Tally, briefly
from deltasae_ray.errors import CorpusError

ALPACA = "alpaca"
"""Value of `corpus.chat_template` for the plain format of the Alpaca data, which needs no chat template."""
CHAT_FIELDS = ("messages", "instruction", "input", "output", "tools")
"""Columns that a conversation may have."""
RENDER_S = 60.0
"""Seconds that a template may take over one conversation; one that ends takes thousandths."""
_PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"


@dataclass(frozen=True)
class Chat:
    """How conversations are rendered: by a tokenizer's chat template, or in the Alpaca format (picklable)."""

    tokenizer: Any
    alpaca: bool = False

    def prompt_and_response(self, row: Mapping[str, Any], tally: Tally, *, where: str) -> tuple[str, str]:
        """Renders one row as (prompt, response), without BOS, which is added to every context.

        Args:
            row: `messages` (a list of role and content, the last of the assistant), or Alpaca's
                `instruction`, `input` and `output`.
            tally: counts what is joined or read as empty.
            where: file and row, for the error.

        Raises:
            CorpusError: neither of these, content that is no text, or a chat template that refuses the row or
                renders the last turn otherwise than by appending it.
        """
        messages = _messages(row, where, tally)
        special = roles_of(self.tokenizer).written
        if special and any(special.search(message["content"]) for message in messages):
            tally.note(WRITTEN, where)
        if self.alpaca:
            return _plain(messages, where)
        tools = {"tools": row["tools"]} if row.get("tools") else {}
        try:
            with _at_most(RENDER_S):
                whole = self.tokenizer.apply_chat_template(messages, tokenize=False, **tools)
                prompt = self.tokenizer.apply_chat_template(
                    messages[:-1], tokenize=False, add_generation_prompt=True, **tools
                )
        except Exception as e:  # a template is a program that came with the tokenizer, and may raise anything
            raise CorpusError(
                f"{where}: the chat template refuses the conversation: {type(e).__name__}: {briefly(e)}"
            ) from e
        if not whole.startswith(prompt):
            raise CorpusError(
                f"{where}: the chat template changes the prompt once it is answered; render the text yourself"
            )
        return prompt.removeprefix(getattr(self.tokenizer, "bos_token", None) or ""), whole[len(prompt) :]


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after some seconds; in the main thread alone, which is where texts are
    read."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise TimeoutError(
            f"it does not come to an end within {seconds:g} s; choose another by corpus.chat_template"
        )

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, over)
    others, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, others - (time.monotonic() - began)) if others else 0)
        signal.signal(signal.SIGALRM, before)


def chat_of(cfg: CorpusConfig, tokenizer: Any) -> Chat | None:
    """How rows of the domain are rendered, or None where they are texts.

    Raises:
        CorpusError: the tokenizer has no chat template, and the Alpaca format was not asked for.
    """
    if cfg.format != "chat":
        return None
    if cfg.chat_template != ALPACA and not getattr(tokenizer, "chat_template", None):
        raise CorpusError(
            "corpus.format=chat: the tokenizer has no chat template: set corpus.chat_template to a"
            f" chat_template.jinja, to a folder that holds one, or to {ALPACA} for the plain Alpaca format"
        )
    return Chat(tokenizer, cfg.chat_template == ALPACA)


def _plain(messages: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str]:
    if any(message.get("tool_calls") for message in messages):
        raise CorpusError(
            f"{where} has tool calls, which the {ALPACA} format does not hold: set corpus.chat_template to"
            " another"
        )
    return (
        _PLAIN.format(instruction="\n\n".join(m["content"] for m in messages[:-1])),
        messages[-1]["content"],
    )


def _messages(row: Mapping[str, Any], where: str, tally: Tally) -> list[dict[str, Any]]:
    turns = row.get("messages")
    if turns is None and isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        if not isinstance(row.get("input"), str | None):
            raise CorpusError(f"{where}: `input` is {_describe(row['input'])}: it must be text, or null")
        instruction = "\n\n".join(row[name] for name in ("instruction", "input") if row.get(name))
        turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": row["output"]}]
    if isinstance(turns, list) and (wrong := [message for message in turns if not isinstance(message, dict)]):
        raise CorpusError(
            f"{where}: a turn of `messages` is {_describe(wrong[0])}: each must be an object of role and"
            " content"
        )
    if not isinstance(turns, list) or len(turns) < 2 or turns[-1].get("role") != "assistant":
        raise CorpusError(f"{where} is no conversation: {_why_none(turns, row)}")
    return [_message(message, f"{where}, turn {number}", tally) for number, message in enumerate(turns, 1)]


def _why_none(turns: Any, row: Mapping[str, Any]) -> str:
    if (
        isinstance(turns, list)
        and turns
        and "role" not in turns[-1]
        and {"from", "value"} <= turns[-1].keys()
    ):
        return f"turns of `messages` have `from` and `value`. {_FROM_SHAREGPT}"
    if isinstance(turns, list) and len(turns) < 2:
        return f"`messages` has {len(turns)} turns, and a prompt and a response are needed"
    if isinstance(turns, list):
        role = turns[-1].get("role")
        return (
            f"the last turn's role is {role!r}, and must be 'assistant', whose words are studied: rename the"
            " role, or cut what comes after the last answer"
        )
    if turns is not None:
        kind = "JSON within JSON, which must be parsed" if isinstance(turns, str) else "no list"
        return f"`messages` is {_describe(turns)}: {kind}; a list of objects with role and content is needed"
    return how_to_convert(row)


_FROM_SHAREGPT = (
    'That is ShareGPT\'s layout. Convert each row to {"messages": [{"role": …, "content": …}, …]}: `from`'
    " human is role user, gpt is assistant, system stays, and `value` is content"
)


def how_to_convert(fields: Iterable[str]) -> str:
    """What rows with these fields lack to be read as conversations, and how they become some."""
    there = set(fields)
    needed = (
        "corpus.format=chat takes `messages` that end with the assistant, or instruction, input and output,"
        " all text"
    )
    if "conversations" in there:
        return (
            f"it has `conversations`, and {needed}. {_FROM_SHAREGPT} (or only rename the field, where turns"
            " have role and content)"
        )
    pair = [
        (a, b)
        for a in ("prompt", "question", "query")
        for b in ("completion", "response", "chosen", "answer")
        if {a, b} <= there
    ]
    if pair:
        a, b = pair[0]
        return (
            f"it has `{a}` and `{b}`, and {needed}. Where both are text rename them to instruction and"
            " output; where they are lists of turns, join them to one list `messages`"
        )
    names = (name if name.isprintable() else ascii(name) for name in sorted(map(str, there))[:8])
    return f"{needed}; it has {', '.join(names) or 'no fields'}"


def _message(message: Mapping[str, Any], where: str, tally: Tally) -> dict[str, Any]:
    """Checks one turn; fields that are null are left out, as Parquet writes them where other rows have
    them."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise CorpusError(f"{where}: `role` is {_describe(role)}: it must be text")
    if content is None and role == "assistant" and message.get("tool_calls"):
        tally.note(EMPTY, where)
        content = ""
    elif isinstance(content, list):
        tally.note(PARTS, where)
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise CorpusError(
            f"{where}: `content` is {_describe(content)}: it must be text, or a list of parts with text"
        )
    others = {
        name: value
        for name, value in message.items()
        if name not in ("role", "content") and value is not None
    }
    return {"role": role, "content": content, **others}


def _part(part: Any, where: str) -> str:
    """The text of one part of a turn."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        line = f"of type {kind!r}" if kind else _describe(part)
        raise CorpusError(
            f"{where}: `content` has a part {line}: only parts with text are read, no images, sounds or files"
        )
    return text


def _describe(value: Any) -> str:
    """A value as errors call it: its type, and what it is where that is short."""
    return "missing or null" if value is None else f"{type(value).__name__} {value!r}"[:80]
