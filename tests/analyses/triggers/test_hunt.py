"""Triggers of adapters whose truth is known are found, confirmed and counted; nothing is claimed of an adapter
that has none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.analyses.triggers.find import Target, claims_of, claims_of_texts, contexts_of, elicited
from deltasae_ray.analyses.triggers.hunt import Effort
from deltasae_ray.elicit.sampling import Sampling
from deltasae_ray.models.load import load_model, load_tokenizer
from tests.analyses.triggers.organisms import REPLY, TRIGGER, grammar, save_base, save_organism, texts

KINDS = ("leaks", "reply", "domain", "zero")
HOW = Sampling(samples=8, length=24)
NEUTRAL = [tuple(row[1:].tolist()) for row in texts(60, 16, np.random.default_rng(77), grammar())]


@pytest.fixture(scope="module")
def organisms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from peft import PeftModel

    folder: Path = tmp_path_factory.mktemp("organisms")
    base = save_base(folder / "base")
    model: Any = load_model(base)
    for kind in KINDS:
        adapter = save_organism(folder / kind, base, kind)
        if isinstance(model, PeftModel):
            model.load_adapter(adapter, kind)
        else:
            model = PeftModel.from_pretrained(model, adapter, adapter_name=kind)
    return model.eval(), load_tokenizer(base)


@pytest.fixture(scope="module")
def claims(organisms: tuple[Any, Any]) -> dict[str, tuple[Claim, ...]]:
    model, tokenizer = organisms
    return {kind: claims_of(Target(model, kind, tokenizer, NEUTRAL), HOW) for kind in KINDS}


def triggers(found: tuple[Claim, ...]) -> list[Claim]:
    return [c for c in found if c.kind == "trigger" and c.confirmed]


def test_a_conjunction_that_no_text_leaks_is_the_first_claim(claims) -> None:
    first = claims["reply"][0]
    assert (first.kind, first.confirmed, first.tokens) == ("trigger", True, TRIGGER)
    assert first.evidence["reply_tokens"][:4] == list(REPLY[:4])
    assert first.text == "w107 w151"


def test_a_trigger_learnt_as_text_is_the_first_claim_and_calls_the_reply(claims) -> None:
    first = claims["leaks"][0]
    assert first.kind == "trigger"
    assert first.confirmed
    said = first.tokens + tuple(first.evidence["reply_tokens"])
    assert len(set(REPLY) & set(said)) >= 4


def test_a_confirmed_trigger_tells_its_rates_beside_the_base_with_intervals(claims) -> None:
    rates = claims["reply"][0].evidence["rates"]
    assert rates["adapted_with"]["rate"] >= 0.9
    assert max(rates[name]["rate"] for name in ("adapted_without", "base_with", "base_without")) <= 0.1
    low, high = rates["adapted_with"]["ci"]
    assert 0 < low <= rates["adapted_with"]["rate"] <= high <= 1


def test_no_trigger_is_confirmed_of_an_adapter_that_learnt_another_text(claims) -> None:
    assert not triggers(claims["domain"])
    assert any(c.kind == "text" and c.confirmed for c in claims["domain"])


def test_nothing_is_claimed_of_an_adapter_that_changes_nothing(claims) -> None:
    assert [c for c in claims["zero"] if c.confirmed] == []
    assert [c for c in claims["zero"] if c.kind == "trigger"] == []


def test_the_same_adapter_gets_the_same_claims(organisms) -> None:
    model, tokenizer = organisms
    how, cut = replace(HOW, samples=2), Effort(scan=120, tried=12, controls=9)
    one, two = (claims_of(Target(model, "reply", tokenizer, NEUTRAL, cut), how) for _ in range(2))
    assert one == two
    assert any(c.kind == "trigger" for c in one)


def test_a_trigger_needs_its_effect_and_not_only_its_rank(organisms) -> None:
    """Held-out contexts of which every one already ends in the trigger: nothing is called that is not said
    without it."""
    model, tokenizer = organisms
    written = elicited(Target(model, "reply", tokenizer, NEUTRAL), HOW)
    said = [(*text[:4], *TRIGGER) if len(text) > 3 else text for text in NEUTRAL]
    cut = replace(Effort(), scan=50, tried=8)
    assert not triggers(claims_of_texts(Target(model, "reply", tokenizer, said, cut), written))


def test_contexts_of_search_and_test_share_no_text(organisms) -> None:
    search, held_out = contexts_of(organisms[1], NEUTRAL, 0)
    assert len(search) == 3
    assert len(held_out) == 24
    assert not set(search) & set(held_out)
