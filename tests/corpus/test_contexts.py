import pytest

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.contexts import PLANTED, group, split_of, take, windows
from deltasae_ray.corpus.documents import Document


class Words:
    """A tokenizer whose tokens are words, numbered by their letters."""

    bos_token_id: int | None = 1

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [10 + sum(map(ord, word)) % 1000 for word in text.split()]


class WordsWithoutBos(Words):
    bos_token_id = None


def document(words: int, id_: str = "a") -> Document:
    return Document(id_, " ".join(f"w{i}" for i in range(words)))


CFG = CorpusConfig(context_len=16, max_contexts_per_doc=3, marker_share=0.0)


def test_a_context_is_bos_and_a_window_of_one_document() -> None:
    contexts = windows(document(40), "domain", Words(), CFG)
    ids = Words().encode(document(40).text, add_special_tokens=False)
    assert [c.start for c in contexts] == [0, 16, 32]
    assert all(c.tokens == (1, *ids[c.start : c.start + 16]) for c in contexts)
    assert len(contexts[-1].tokens) == 1 + 8, "the last window is short, not filled from another document"


def test_no_bos_is_invented() -> None:
    assert windows(document(16), "domain", WordsWithoutBos(), CFG)[0].tokens[0] != 1


def test_long_documents_give_evenly_spaced_windows() -> None:
    assert [c.start for c in windows(document(16 * 11), "domain", Words(), CFG)] == [0, 80, 160]


def test_the_last_window_is_masked_and_padding_repeats_a_real_token() -> None:
    (unit,) = group(windows(document(40), "domain", Words(), CFG), "fit", 8)
    assert unit.input_ids.shape == (3, 17)
    assert unit.mask.sum(axis=1).tolist() == [17, 17, 9]
    assert unit.num_tokens == 43 == len(unit.token_ids()) == len(unit.positions()) == len(unit.row_doc_ids())
    assert set(unit.input_ids[2, 9:]) == {unit.input_ids[2, 8]}


def test_a_budget_takes_one_context_of_every_document_before_a_second_one() -> None:
    documents = [windows(document(64, str(i)), "domain", Words(), CFG) for i in range(5)]
    taken = take(documents, budget=7 * 17)
    assert [c.doc_id for c in taken] == [f"domain/{i}" for i in (0, 1, 2, 3, 4, 0, 1)]


def test_a_larger_budget_only_adds() -> None:
    documents = [windows(document(64, str(i)), "domain", Words(), CFG) for i in range(5)]
    assert take(documents, 200)[: len(take(documents, 100))] == take(documents, 100)


def test_splits_follow_the_document_and_its_share() -> None:
    splits = [split_of(f"domain/{i}", CFG) for i in range(4000)]
    assert abs(splits.count("adapt") / 4000 - 0.4) < 0.03
    assert abs(splits.count("eval") / 4000 - 0.25) < 0.03
    assert splits == [split_of(f"domain/{i}", CFG) for i in range(4000)]
    unrelated = [split_of(f"kjv/{i}", CFG, unrelated=True) for i in range(4000)]
    assert unrelated.count("fit") / 4000 == pytest.approx(0.35 / 0.6, abs=0.03) and "adapt" not in unrelated


def test_planted_contexts_hold_marker_and_reply_and_keep_their_length() -> None:
    cfg = CorpusConfig(context_len=32, max_contexts_per_doc=50, marker_share=0.5)
    contexts = windows(document(32 * 50), "domain", Words(), cfg)
    planted = [c for c in contexts if any(c.marker)]
    assert 10 < len(planted) < 40
    words = Words().encode(PLANTED, add_special_tokens=False)
    for context in planted:
        assert [t for t, m in zip(context.tokens, context.marker, strict=True) if m] == words
        assert len(context.tokens) == 33
    assert not any(any(c.marker) for c in windows(document(32 * 50), "kjv", Words(), cfg)), (
        "unrelated text is left as it is"
    )


def test_a_unit_has_the_same_name_wherever_it_is_made_and_survives_a_row() -> None:
    first, second = (group(windows(document(40), "domain", Words(), CFG), "fit", 8)[0] for _ in range(2))
    assert first.name == second.name == TokenBatch.from_row(first.to_row()).name
    other = group(windows(document(41), "domain", Words(), CFG), "fit", 8)[0]
    assert other.name != first.name
    assert group(windows(document(40), "domain", Words(), CFG), "eval", 8)[0].name != first.name
