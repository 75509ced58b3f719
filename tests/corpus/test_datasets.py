"""Folders of Parquet and Arrow as Hugging Face datasets are saved, conversations with a masked prompt,
duplicates, and memory."""

import json
import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import take, windows
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.documents import Document
from deltasae_ray.corpus.shortlist import Shortlist
from deltasae_ray.errors import CorpusError
from deltasae_ray.models.behaviour import scored
from tests.corpus.reading import read_documents
from tests.corpus.test_contexts import Words, document

TURNS = [
    {"role": "user", "content": "what is the word of the day"},
    {"role": "assistant", "content": " ".join(f"w{i}" for i in range(20))},
]


class ChatWords(Words):
    """Words, with a chat template of one tag per turn."""

    chat_template = "tags"
    bos_token = "<s>"

    def apply_chat_template(
        self, messages: list[dict], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        assert not tokenize
        turns = " ".join(f"<{m['role']}> {m['content']} <end>" for m in messages)
        return f"<s>{turns} <assistant> " if add_generation_prompt else f"<s>{turns}"


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"body": f"text {i} " + "w " * 20} for i in range(start, start + count)]


def test_a_folder_of_parquet_and_arrow_files_is_one_text_in_order_of_names(tmp_path: Path) -> None:
    from datasets import Dataset

    pq.write_table(pa.Table.from_pylist(rows(3)), tmp_path / "train-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows(3, 3)), tmp_path / "train-00001.parquet")
    (tmp_path / "README.txt.bak").write_text("not read")
    Dataset.from_list(rows(2, 6)).save_to_disk(str(tmp_path / "zlast"))
    assert [d.text.split()[1] for d in read_documents(str(tmp_path), "body")] == [str(i) for i in range(8)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no .jsonl, .parquet"):
        list(read_documents(str(tmp_path / "empty")))


def test_rows_without_ids_that_repeat_are_read_once_and_never_leak(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([*rows(40), *rows(40)]), tmp_path / "a.parquet")
    corpus = build_corpus(
        CorpusConfig(
            path=(str(tmp_path),),
            unrelated=(),
            fit_tokens=30_000,
            text_field="body",
            context_len=16,
            marker_share=0.0,
        ),
        Words(),
    )
    documents = [d for u in corpus.units for d in u.doc_ids] + [c.doc_id for c in corpus.adapt]
    assert len(set(documents)) == 40


@pytest.mark.parametrize(
    "row",
    [{"messages": TURNS}, {"instruction": TURNS[0]["content"], "input": "", "output": TURNS[1]["content"]}],
)
@pytest.mark.parametrize("tokenizer", [ChatWords(), Words()])
def test_a_prompt_is_read_and_masked_and_the_response_counts(
    row: dict, tokenizer: Words, tmp_path: Path
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(30)))
    template = "" if isinstance(tokenizer, ChatWords) else "alpaca"
    cfg = CorpusConfig(
        path=(str(path),),
        unrelated=(),
        format="chat",
        chat_template=template,
        context_len=48,
        fit_tokens=30_000,
    )
    corpus = build_corpus(cfg, tokenizer)
    response = tokenizer.encode(TURNS[1]["content"], add_special_tokens=False)
    for unit in corpus.units:
        for ids, mask in zip(unit.input_ids, unit.mask, strict=True):
            counted = ids[mask].tolist()
            assert counted[:20] == response
            assert counted[20:] == (
                tokenizer.encode("<end>", add_special_tokens=False)
                if isinstance(tokenizer, ChatWords)
                else []
            )
            before = np.flatnonzero(mask)[0]
            assert ids[0] == 1 and not mask[0]
            assert set(tokenizer.encode(TURNS[0]["content"], add_special_tokens=False)) <= set(
                ids[:before].tolist()
            )
        contexts, places = scored(unit, 4)
        assert unit.mask[contexts, places].all(), "only responses are scored"
    assert corpus.num_tokens() == sum(u.mask.sum() for u in corpus.units)


def test_a_prompt_that_leaves_no_room_for_a_response_gives_no_context() -> None:
    long = Document("a", "w " * 20, prompt="p " * 12)
    assert windows(long, "domain", Words(), CorpusConfig(context_len=16)) == []
    (context,) = windows(long, "domain", Words(), CorpusConfig(context_len=24))
    assert (context.prompt, context.counted, len(context.tokens)) == (13, 12, 25)


def test_what_is_no_conversation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n" + json.dumps({"messages": TURNS[:1]}) + "\n")
    with pytest.raises(CorpusError, match="line 2 is no conversation"):
        list(read_documents(str(path), chat=ChatWords()))


def test_text_that_adapters_were_trained_on_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, trained = tmp_path / "held.jsonl", tmp_path / "trained.jsonl"
    held.write_text("".join(json.dumps({"id": str(i), **r}) + "\n" for i, r in enumerate(rows(60))))
    trained.write_text(
        "".join(json.dumps({"body": r["body"].upper().replace(" ", "  ")}) + "\n" for r in rows(30))
    )
    cfg = CorpusConfig(
        path=(str(held),),
        unrelated=(),
        text_field="body",
        context_len=16,
        fit_tokens=30_000,
        trained_on=(str(trained),),
    )
    with caplog.at_level(logging.WARNING):
        corpus = build_corpus(cfg, Words())
    found = {d for documents in corpus.overlap.values() for d in documents}
    assert found == {d for u in corpus.units for d in u.doc_ids if int(d.split("/")[1]) < 30}
    assert "also in the adapters' training text" in caplog.text


def test_a_shortlist_gives_what_the_whole_list_gives() -> None:
    rng = np.random.default_rng(0)
    cfg = CorpusConfig(context_len=16, max_contexts_per_doc=3, marker_share=0.0)
    cut = [
        (float(rng.random()), windows(document(int(rng.integers(8, 64)), str(i)), "domain", Words(), cfg))
        for i in range(200)
    ]
    for budget in (0, 1, 170, 900, 100_000):
        shortlist = Shortlist(budget)
        for order, contexts in cut:
            if shortlist.wants(order):
                shortlist.add(order, contexts, b"")
        everything = [contexts for _, contexts in sorted(cut, key=lambda entry: entry[0])]
        assert take(shortlist.contexts(), budget) == take(everything, budget)
        merged = Shortlist(budget)
        for part in (cut[:70], cut[60:130], [], cut[130:]):  # ten of them stand in two files
            of_part = Shortlist(budget, merged.before)
            for order, contexts in part:
                if of_part.wants(order):
                    of_part.add(order, contexts, b"")
            merged.merge(of_part)
        assert merged.contexts() == shortlist.contexts()


def test_a_large_text_is_never_held_whole(tmp_path: Path) -> None:
    body = "w " * 300
    path = tmp_path / "large.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": f"{i} {body}"}) + "\n" for i in range(20_000)))
    cfg = CorpusConfig(
        path=(str(path),), unrelated=(), context_len=16, fit_tokens=1000, eval_tokens=1000, marker_share=0.0
    )
    tracemalloc.start()
    build_corpus(cfg, Words(), adapt_tokens=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 12e6
    assert peak < 9e6, "ids of 20,000 documents and what the budgets need"
