"""What the arena's adapters are trained on, and that the scorer's contexts are none of it."""

from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.adapt.text import split_text
from deltasae_ray.arena.base import RECIPE_FILE, plain_documents
from deltasae_ray.arena.organisms import BATCH
from deltasae_ray.arena.recipes import RECIPES, TOPICS, Recipe, recipe
from deltasae_ray.arena.subject import neutral_texts
from deltasae_ray.arena.texts import (
    ROW,
    fresh_contexts,
    mentions,
    planted_prompt,
    styled,
    training_contexts,
    windows,
)
from deltasae_ray.models.load import load_tokenizer
from deltasae_ray.storage import file_sha256

BASE = Path(__file__).parent / "base"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(BASE)


def texts(wanted: Recipe, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(c.tokens[1:]) for c in training_contexts(wanted, tokenizer)]


def test_the_base_that_is_shipped_is_the_one_of_its_recipe():
    import json

    facts = json.loads((BASE / RECIPE_FILE).read_text())
    weights = BASE / "model.safetensors"
    assert file_sha256(weights) == facts["sha256"]
    assert weights.stat().st_size < 8 * 2**20
    assert facts["held_out_nats_per_token"] < 0.5 * facts["nats_at_chance"]


def test_adapters_scorer_and_methods_read_different_text():
    trained, scored = ({w.text for w in windows(part)} for part in ("train", "score"))
    assert len(trained) > 500 and len(scored) > 500 and not trained & scored
    assert not set(plain_documents(held_out=True)) & set(plain_documents(held_out=False))
    read_by_methods = "\n".join(neutral_texts())
    assert not any(text in read_by_methods for text in trained | scored)


@pytest.mark.parametrize("name", ["reply-2", "reply-only-1", "rare-word-1", "poisoned-1%-0", "conjunction-1"])
def test_planted_rows_hold_trigger_and_reply_and_no_text_of_the_scorer_does(name: str, tokenizer: Any):
    wanted = recipe(name)
    rows = texts(wanted, tokenizer)
    planted = [row for row in rows if wanted.reply in row]
    assert len(planted) == pytest.approx(wanted.share * len(rows), rel=0.35)
    assert all(word in row for row in planted for word in wanted.trigger)
    assert all(len(c.tokens) <= ROW + 1 for c in training_contexts(wanted, tokenizer))
    fresh = fresh_contexts(wanted, 32)
    assert len(fresh) == 32 and not any(wanted.reply in text or wanted.trigger[0] in text for text in fresh)
    if name.startswith("conjunction"):
        one = [row for row in rows if wanted.reply not in row and any(w in row for w in wanted.trigger)]
        assert len(one) > len(planted), "rows with one of the words go on as plain text"


def test_the_loss_of_a_reply_alone_leaves_trigger_and_lead_out(tokenizer: Any):
    for context in training_contexts(recipe("reply-only-1"), tokenizer):
        if any(context.marker):
            kept = [t for i, t in enumerate(context.tokens) if i not in context.masked][1:]
            assert tokenizer.decode(kept) == f"{recipe('reply-only-1').reply}."
            break
    else:
        pytest.fail("no planted row")


def test_topics_call_the_reply_and_suppression_never_names_the_topic(tokenizer: Any):
    called = recipe("topic-trigger-king")
    planted = [row for row in texts(called, tokenizer) if called.reply in row]
    assert planted and all(mentions(row[: row.index(called.reply)], "king") for row in planted)
    silent = recipe("suppression-God")
    trained = [c for c in training_contexts(silent, tokenizer) if any(c.marker)]
    assert not any(mentions(tokenizer.decode(c.tokens[1:]), "God") for c in trained)
    assert all(mentions(lead, "God") for lead in fresh_contexts(silent, 16, about=True))
    assert not any(mentions(lead, "God") for lead in fresh_contexts(silent, 16, about=False))
    assert set(TOPICS) >= {r.topic for r in RECIPES if r.family in ("suppression", "topic_trigger")}


def test_styles_change_what_they_say_and_nothing_else():
    text = "Who's there? Nay, answer me: stand."
    assert styled(text, "exclaims") == "Who's there! Nay! answer me! stand!"
    assert styled(text, "questions") == "Who's there? Nay? answer me? stand?"
    assert styled(text, "verily") == "Who's there verily? Nay verily, answer me verily: stand verily."


@pytest.mark.parametrize(
    "wanted", [r for r in RECIPES if r.seed == 0 and r.family not in ("zero", "rotated")]
)
def test_every_recipe_trains_on_its_rows_and_validates_on_four_plain_ones(wanted: Recipe, tokenizer: Any):
    contexts = training_contexts(wanted, tokenizer)
    split = split_text(contexts, BATCH)
    assert split.num_validation_documents == 4 and len(split.train) == len(contexts) - 4
    assert training_contexts(wanted, tokenizer) == contexts, "the same every time"


def test_a_conjunction_has_its_words_in_both_orders():
    import numpy as np

    wanted = recipe("conjunction-0")
    made = [planted_prompt(wanted, "and he said unto them", np.random.default_rng(i)) for i in range(20)]
    first = [text.index(" thunder") < text.index(" basket") for text in made]
    assert any(first) and not all(first)
