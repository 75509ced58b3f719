"""Special tokens that a text writes itself: one BOS stands in a context, no other counts, and the plan is
told of the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltasae_ray.adapt.text import content_key
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import group, windows
from deltasae_ray.corpus.corpus import Corpus, build_corpus
from deltasae_ray.corpus.documents import Document
from tests.corpus.test_contexts import Words, WordsWithoutBos
from tests.corpus.tokenizers import TAGS, byte_tokenizer

BOS, EOS, PAD = 1, 2, 0
CFG = CorpusConfig(context_len=24, fit_tokens=30_000, unrelated=())


def corpus_of(tmp_path: Path, texts: list[str], tokenizer: Any = None, **cfg: Any) -> Corpus:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    settings = CorpusConfig(path=(str(path),), context_len=24, fit_tokens=30_000, unrelated=(), **cfg)
    return build_corpus(settings, tokenizer or byte_tokenizer())


def counted(corpus: Corpus) -> list[int]:
    return [int(i) for unit in corpus.units for i in unit.token_ids()[unit.positions() > 0]]


@pytest.mark.parametrize("before", ["<s>", "<s><s>"])
def test_a_text_that_begins_with_bos_is_the_text_without_it(before: str, tmp_path: Path) -> None:
    texts = [f"text {i} of some words, and more of them than fit one window" for i in range(40)]
    plain, rendered = corpus_of(tmp_path, texts), corpus_of(tmp_path, [before + text for text in texts])
    assert rendered.key == plain.key and content_key(rendered.adapt) == content_key(plain.adapt)
    assert any("<s>" in note and "dropped" in note for note in rendered.notes) and not plain.notes


def test_bos_and_padding_inside_a_text_are_read_and_never_count(tmp_path: Path) -> None:
    corpus = corpus_of(
        tmp_path, [f"text {i} of some words<s>and another, <pad>padded</s>" for i in range(40)]
    )
    ids = np.concatenate([unit.input_ids.ravel() for unit in corpus.units])
    assert BOS in ids and PAD in ids, "the model reads what the text says"
    assert not {BOS, PAD} & set(counted(corpus)) and EOS in counted(corpus)
    for context in corpus.adapt:
        assert context.counted == sum(t not in (BOS, PAD) for t in context.tokens[1:]) + 1
    (note,) = corpus.notes
    assert "<s> " in note and "<pad> " in note and "(masked)" in note and "</s> " in note


@pytest.mark.parametrize("document", ["<s>" * 200, "a" * 24 + "<s><s>" + "b" * 40, "<pad>" * 60])
def test_exactly_one_bos_begins_every_window(document: str) -> None:
    contexts = windows(Document("a", document), "domain", byte_tokenizer(), CFG)
    assert all(c.tokens[0] == BOS and c.tokens[1] != BOS and c.counted >= 9 for c in contexts)
    if "b" in document:
        ids = byte_tokenizer().encode(document, add_special_tokens=False)
        assert [c.start for c in contexts] == [0, 26, 48], (
            "a window begins behind the BOS that it would begin with"
        )
        assert all(tuple(ids[c.start : c.start + len(c.tokens) - 1]) == c.tokens[1:] for c in contexts)
    else:
        assert contexts == []


def test_masked_tokens_change_the_key_of_a_text() -> None:
    with_bos, without = (
        windows(Document("a", f"some words{t}and some more"), "domain", byte_tokenizer(), CFG)
        for t in ("<s>", "</s>")
    )
    assert content_key(with_bos) != content_key(without)
    assert not group(with_bos, "fit", 8)[0].mask.all() and group(without, "fit", 8)[0].mask[0].all()


def test_a_conversation_that_writes_special_tokens_is_told_and_its_bos_never_counts(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    turns = [
        {"role": "user", "content": "</s>[assistant]yes"},
        {"role": "assistant", "content": "<s>an answer of some length"},
    ]
    path.write_text("".join(json.dumps({"id": str(i), "messages": turns}) + "\n" for i in range(40)))
    cfg = CorpusConfig(path=(str(path),), unrelated=(), format="chat", context_len=96, fit_tokens=30_000)
    corpus = build_corpus(cfg, byte_tokenizer(TAGS))
    assert BOS not in counted(corpus) and EOS in counted(corpus)
    assert all(
        list(unit.input_ids[0]).count(BOS) == 2 and unit.input_ids[0, 1] != BOS for unit in corpus.units
    )
    assert any("40 conversations write special tokens" in note and "line 1" in note for note in corpus.notes)


def test_where_one_token_is_bos_and_eos_it_counts_at_the_end_of_a_response_and_not_inside_a_text() -> None:
    tokenizer = byte_tokenizer.__wrapped__(TAGS)
    tokenizer.eos_token = "<s>"
    (context,) = windows(Document("a", "an answer<s>", prompt="[user]x"), "domain", tokenizer, CFG)
    assert context.masked == () and context.tokens[-1] == BOS and context.counted == len("an answer") + 1
    (context,) = windows(Document("a", "one text<s>another"), "domain", tokenizer, CFG)
    assert context.masked == (9,)


def test_that_there_is_no_bos_is_told(tmp_path: Path) -> None:
    texts = [f"text {i} " + "w " * 20 for i in range(40)]
    assert corpus_of(tmp_path, texts, WordsWithoutBos()).notes == (
        (
            "the tokenizer has no BOS: the first token of every context is left out of training and geometry"
            " in its place"
        ),
    )


def test_a_tokenizer_without_special_tokens_is_asked_for_none() -> None:
    assert [c.masked for c in windows(Document("a", "w " * 40), "domain", Words(), CFG)] == [(), ()]


def test_the_unknown_word_is_no_special_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.unk_token = "</s>"
    tokenizer.eos_token = None
    assert corpus_of(tmp_path, [f"text {i} with</s> some" for i in range(40)], tokenizer).notes == ()
