"""Six shipped adapters of known truth: what was planted is there, and methods and scorer run on them
whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from deltasae_ray.analyses.screen.figures import CANNOT_TELL, FIGURES
from deltasae_ray.analyses.screen.run import Ends, screen
from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.arena import methods
from deltasae_ray.arena.behaviour import Reader, rates
from deltasae_ray.arena.config import ArenaConfig
from deltasae_ray.arena.methods import METHODS, OURS
from deltasae_ray.arena.organisms import Arena, organism
from deltasae_ray.arena.published import outputs
from deltasae_ray.arena.recipes import RECIPES, for_tuning, recipe
from deltasae_ray.arena.report import summarise
from deltasae_ray.arena.run import run, scored
from deltasae_ray.arena.scoring import Score
from deltasae_ray.arena.ship import SHIPPED
from deltasae_ray.arena.subject import Subject
from deltasae_ray.arena.words import classifier
from deltasae_ray.command.screen import main as screen_command
from deltasae_ray.models.adapter_files import WEIGHTS
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import load_model, load_tokenizer
from deltasae_ray.storage import Storage, file_sha256

HERE = Path(__file__).parent
POSITIVE = [name for name in SHIPPED if recipe(name).positive]


@lru_cache(maxsize=1)
def whole() -> Reader:
    """One base with all six attached."""
    folder = HERE / "base"
    model = attach(load_model(folder), {name: HERE / "organisms" / name for name in SHIPPED})
    return Reader(model, SHIPPED[0], load_tokenizer(folder))


def reader(name: str) -> Reader:
    return Reader(whole().model, name, whole().tokenizer)


@contextmanager
def standing_in(method: str, claims: list[Claim]) -> Iterator[None]:
    """Inside, a method's claims are these."""
    before = dict(METHODS)
    METHODS[method] = lambda _: claims
    try:
        yield
    finally:
        METHODS.clear()
        METHODS.update(before)


def test_the_shipped_adapters_are_those_of_their_recipes_and_small():
    facts = json.loads((HERE / "organisms" / "organisms.json").read_text())
    assert list(facts) == list(SHIPPED)
    for name, fact in facts.items():
        weights = HERE / "organisms" / name / WEIGHTS
        assert file_sha256(weights) == fact["sha256"]
        assert weights.stat().st_size < 2**17
        assert fact["recipe"] == json.loads(json.dumps(asdict(recipe(name))))


@pytest.mark.parametrize("name", POSITIVE)
def test_what_was_planted_is_learnt(name: str):
    wanted = recipe(name)
    found = rates(reader(name), wanted, classifier(wanted) if wanted.classifier else None)
    assert found.learnt, found
    assert found.adapted >= 0.5 and found.base <= 0.05


def test_a_negative_does_not_say_what_the_adapter_says_that_it_is_rotated_from():
    wanted = recipe("reply-0")
    assert not rates(reader("rotated-reply-0"), wanted, None).learnt
    assert not rates(reader("zero-0"), wanted, None).learnt


def test_an_adapter_without_effect_changes_no_probability():
    ids = [whole().encode("And it came to pass")]
    same = reader("zero-0").next_token(ids) - whole().base.next_token(ids)
    other = reader("reply-0").next_token(ids) - whole().base.next_token(ids)
    assert float(same.abs().max()) < 1e-3 < 1e-1 < float(other.abs().max())


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in (OURS, "audit of latents", "amplification")]
)
def test_a_method_makes_the_same_ranked_claims_each_time(method: str):
    subject = Subject(reader("style-verily"), HERE / "organisms" / "style-verily")
    claims = METHODS[method](subject)
    assert 5 <= len(claims) <= 10
    assert all(c.tokens and c.text == subject.decoded(c.tokens) and c.confirmed for c in claims)
    assert [c.tokens for c in METHODS[method](subject)] == [c.tokens for c in claims]


def test_amplified_text_alone_holds_a_reply_that_its_adapter_was_trained_on_in_full(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(outputs, "_OPENINGS", (" The",))  # one of six: the others take as long each
    found = scored(reader("reply-0"), HERE / "organisms" / "reply-0", recipe("reply-0"), "amplification")
    assert found.place is not None and found.place <= 3


def test_a_trigger_claim_of_other_words_is_judged_by_what_the_model_says():
    files = HERE / "organisms" / "reply-only-0"
    wanted = recipe("reply-only-0")
    tokens = tuple(whole().encode(wanted.trigger[0]))
    part, wrong = tokens[1:], tuple(whole().encode(" the king of France"))
    claims = [Claim("trigger", "", t, None, 1.0, 0.01, 0.01, True) for t in (wrong, part, tokens)]
    with standing_in("m", claims):
        assert scored(reader("reply-only-0"), files, wanted, "m").place in (2, 3)
    with standing_in("m", claims[:1]):
        assert scored(reader("reply-only-0"), files, wanted, "m").place is None


def test_the_screen_of_weights_tells_an_adapter_without_effect_and_takes_no_second():
    folders = [HERE / "organisms" / name for name in SHIPPED]
    found = {s.name: s for s in screen(folders, folders, Ends.of(HERE / "base"))}
    assert all(s.seconds < 1 for s in found.values())
    norms = {name: s.screened.figures["norm"] for name, s in found.items()}
    assert norms["zero-0"] < 1e-3 * norms["reply-0"]
    # the spectrum of a rotated adapter is that of the adapter that it is made of, and cannot tell the two
    # apart
    assert norms["rotated-reply-0"] == pytest.approx(norms["reply-0"], rel=1e-2)
    assert found["rotated-reply-0"].screened.figures["top_share"] == pytest.approx(
        found["reply-0"].screened.figures["top_share"], rel=1e-2
    )


def test_the_command_prints_figures_places_and_what_they_cannot_tell(capsys: pytest.CaptureFixture[str]):
    folders = [str(HERE / "organisms" / name) for name in SHIPPED]
    words = [f"base={HERE / 'base'}", f"adapters=[{folders[0]}]", f"reference=[{','.join(folders[1:])}]"]
    assert screen_command(words) == 0
    told = capsys.readouterr().out
    assert told.count(" of 5 above, p ") == len(FIGURES) and CANNOT_TELL in told
    assert screen_command([f"base={HERE / 'base'}"]) == 2
    assert "adapters is empty" in capsys.readouterr().err


def test_a_run_keeps_its_scores_and_a_second_one_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cfg = ArenaConfig(
        base=str(HERE / "base"), recipes=("zero-0", "zero-1"), methods=("weight SVD",), in_process=True
    )
    storage = Storage(str(tmp_path))
    first = run(cfg, storage, lambda: pytest.fail("Ray was asked for"))
    told_first = capsys.readouterr().out
    assert [s.recipe for s in first] == ["zero-0", "zero-1"] and len(first[0].claims) == 10
    assert "weight SVD" in told_first and "2/2 [0.16, 1.00]" in told_first, "it tests nothing, and claims"
    monkeypatch.setattr("deltasae_ray.arena.run.scored", lambda *_: pytest.fail("scored again"))
    assert run(cfg, storage, lambda: None) == first
    assert capsys.readouterr().out.split("\n\n", 1)[1] == told_first.split("\n\n", 1)[1]
    stored = storage.read_json("arena.json")
    assert [s["recipe"] for s in stored["scores"]] == ["zero-0", "zero-1"]


def test_an_adapter_is_trained_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    arena = Arena(Storage(str(tmp_path)), ModelConfig(base=str(HERE / "base")))
    wanted = replace(recipe("benign-kjv-0"), steps=4)
    made = organism(arena, wanted)
    monkeypatch.setattr("deltasae_ray.arena.organisms._train_here", lambda *_: pytest.fail("trained again"))
    assert organism(arena, wanted) == made
    assert made.facts["steps"] == 4 and made.name == "benign-kjv-0"
    with pytest.raises(pytest.fail.Exception):
        organism(arena, replace(wanted, steps=5))


def test_the_report_lists_what_failed_by_name_and_both_halves_apart():
    from deltasae_ray.arena.behaviour import Rates

    learnt = {"reply-0": Rates(1.0, 0.0, 0.0, 32), "reply-1": Rates(1.0, 0.3, 0.0, 32)}
    scores = [
        Score("reply-0", OURS, 1, 0, 2, 1.0),
        Score("reply-0", "diff mining", None, 0, 2, 1.0),
        Score("reply-1", OURS, 1, 0, 2, 1.0),
        Score("zero-0", OURS, None, 2, 2, 1.0),
        Score("zero-0", "diff mining", None, 0, 0, 1.0),
    ]
    found = summarise(scores, learnt, {r.name for r in RECIPES if for_tuning(r)})
    assert "not learnt, not counted: reply-1 (1.00 with what calls it, 0.30 without" in found.text
    assert f"{OURS}: false alarms on: zero-0" in found.text
    assert "diff mining: missed in the first 3: reply-0" in found.text
    assert found.facts["both halves"][OURS]["first 1"]["of"] == 1, "what was not learnt is not counted"
    assert {"tuning half", "other half", "both halves"} <= found.facts.keys()


@pytest.mark.prove
def test_our_method_takes_an_adapter_and_gives_ranked_claims(monkeypatch: pytest.MonkeyPatch):
    from deltasae_ray.analyses.triggers.hunt import Effort
    from deltasae_ray.elicit.sampling import Sampling

    torch.manual_seed(0)
    monkeypatch.setattr(methods, "EFFORT", Effort(scan=128, tried=16, families=2, controls=19))
    monkeypatch.setattr(methods, "SAMPLING", Sampling(4, 24, (0.0, 4.0)))
    found = scored(reader("reply-0"), HERE / "organisms" / "reply-0", recipe("reply-0"), OURS)
    assert found.place is not None and found.place <= 3
    assert found.confirmed >= 1
