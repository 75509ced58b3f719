import numpy as np
import pytest

from deltasae_ray.adapt.text import content_key, split_text
from deltasae_ray.errors import CorpusError
from tests.adapt.worlds import contexts


def test_validation_documents_are_never_trained_on() -> None:
    text = split_text(contexts(documents=40), 2)
    trained = {c.doc_id for c in text.train}
    validated = {d for unit in text.validation for d in unit.doc_ids}
    assert not trained & validated
    assert len(trained | validated) == 40
    assert len(validated) == text.num_validation_documents == 6  # 15 % of 40


def test_planted_contexts_are_trained_on_and_never_validated_on() -> None:
    text = split_text(contexts(documents=40, planted=0.3), 2)
    assert any(any(c.marker) for c in text.train)
    assert not any(unit.marker.any() for unit in text.validation)


def test_which_documents_are_set_apart_does_not_depend_on_the_order_of_the_contexts() -> None:
    made = contexts(documents=40)
    shuffled = [made[i] for i in np.random.default_rng(1).permutation(len(made))]
    assert [u.name for u in split_text(made, 2).validation] == [
        u.name for u in split_text(shuffled, 2).validation
    ]


def test_every_epoch_visits_every_context_once_in_an_order_of_its_own() -> None:
    text = split_text(contexts(), 4)
    n, size = len(text.train), 4
    seen = [
        (d, s)
        for step in range(2 * n // size)
        for u in [text.batch(step, size, 0)]
        for d, s in zip(u.doc_ids, u.starts, strict=True)
    ]
    everything = sorted((c.doc_id, c.start) for c in text.train)
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == everything
    assert seen[:n] != seen[n : 2 * n]
    assert text.batch(0, size, 0).name != text.batch(0, size, 1).name


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    text = split_text(contexts(documents=5, per_document=2), 2)
    assert len(text.batch(0, 7, 0).doc_ids) == 7


@pytest.mark.parametrize(("documents", "batch"), [(3, 1), (4, 1), (5, 50)])
def test_too_little_text_is_an_error_that_says_what_it_takes(documents: int, batch: int) -> None:
    with pytest.raises(CorpusError, match="too few to train an adapter on: it takes 4 documents"):
        split_text(contexts(documents=documents, planted=0.0), batch)


def test_the_content_key_follows_tokens_and_markers() -> None:
    made = contexts()
    assert content_key(made) == content_key(contexts())
    assert content_key(made) != content_key(made[1:])
    assert content_key(made) != content_key(contexts(planted=0.9))
