"""Elicitation and hunt by their steps: each is made once, found again, and the same after a loss."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.analyses.triggers.hunt import Effort
from deltasae_ray.analyses.triggers.run import CLAIMS, Hunter, claims, neutral_unit, write_claims
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.elicit.config import ElicitConfig
from deltasae_ray.elicit.run import Sampler, texts_from_json, texts_to_json
from deltasae_ray.elicit.sampling import Sampling
from deltasae_ray.errors import CorpusError
from deltasae_ray.models.adapters import import_adapter
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.source import resolve_model
from deltasae_ray.report.inputs import Rate
from deltasae_ray.report.learnt import learnt_facts
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.context import StageContext, StepFactory
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage
from tests.harvest.study import corpus, run_units_here

LITTLE = ElicitConfig(samples=1, length=6, scan=24)


def test_claims_are_made_once_and_found_again_and_a_lost_one_is_made_anew_alike(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltasae_ray.runtime.context.run_units", run_units_here)
    storage, cfg = Storage(str(tmp_path)), ModelConfig(base=str(tiny_model))
    texts = corpus(tiny_model)
    own = import_adapter(storage, tiny_adapters[1], "r4", empty_model(tiny_model))
    control = replace(import_adapter(storage, tiny_adapters[0], "r2", empty_model(tiny_model)), kind="random")
    context = StageContext(storage, cfg, resolve_model(cfg).digest, texts, GangConfig())
    first = claims(context, [own, control], LITTLE, 0)
    assert set(first) == {"r4", "r2"}
    files = {p: p.read_bytes() for folder in ("elicit", "triggers") for p in (tmp_path / folder).iterdir()}
    assert len(list((tmp_path / "elicit").iterdir())) == 3, "the base's, the adapter's, the random one's"
    assert len(list((tmp_path / "triggers").iterdir())) == 2
    lost = max(files, key=lambda p: (p.parent.name == "triggers", p.name))
    times = {p: p.stat().st_mtime_ns for p in files}
    lost.unlink()
    assert claims(context, [own, control], LITTLE, 0) == first
    assert {p: p.read_bytes() for p in files} == files
    again = {p for p in files if p.stat().st_mtime_ns != times[p]}
    assert again == {lost}
    stored = next((tmp_path / "elicit").iterdir())
    known = json.loads(stored.read_text())
    assert texts_to_json(texts_from_json(known)) == known


def test_a_rank_stores_texts_of_every_source_and_claims_of_every_adapter(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    storage, cfg = Storage(str(tmp_path)), ModelConfig(base=str(tiny_model))
    own = import_adapter(storage, tiny_adapters[1], "r4", empty_model(tiny_model))
    neutral, rank, made = (
        neutral_unit(corpus(tiny_model)),
        RankContext(0, 1, "cpu"),
        resolve_model(cfg).digest,
    )
    how = Sampling(1, 6)
    writer = StepFactory(storage, cfg, made, (own,), Sampler(storage, cfg, made, how))(rank)
    for source in (BASE, "r4"):
        key = writer(neutral, {"source": source, "key": f"elicit/{source}.json"}, keep=True)
        assert len(texts_from_json(storage.read_json(key))) >= 9
    hunt = Hunter(storage, cfg, made, Effort(scan=24, tried=8, controls=9), 0)
    hunter = StepFactory(storage, cfg, made, (own,), hunt)(rank)
    todo = {"adapter": "r4", "key": "triggers/r4.json", "texts": ["elicit/r4.json", "elicit/base.json", None]}
    found = storage.read_json(hunter(neutral, todo, keep=True))["claims"]
    assert {c["kind"] for c in found} >= {"style", "suppression"}
    assert all(0 < c["p"] <= 1 and 0 < c["q"] <= 1 for c in found)


def test_too_little_text_is_refused_before_any_work(tiny_model: Path) -> None:
    whole = corpus(tiny_model)
    few = [u for u in whole.units if u.split != "eval"]
    with pytest.raises(CorpusError, match=r"raise corpus.eval_tokens, or set elicit.samples=0"):
        neutral_unit(Corpus(tuple(few), ()))


def claim(text: str, confirmed: bool) -> Claim:
    rate = {"rate": 1.0, "ci": [0.86, 1.0], "contexts": 24}
    none = {"rate": 0.0, "ci": [0.0, 0.14], "contexts": 24}
    rates = {"adapted_with": rate, "adapted_without": none, "base_with": none, "base_without": none}
    return Claim("trigger", text, (5, 6), "yes", 4.0, 0.01, 0.02, confirmed, {"rates": rates})


def test_claims_json_is_a_list_with_confirmed_claims_first(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_claims(storage, {"a": (claim("one", False),), "b": (claim("two", True), claim("three", False))})
    rows = json.loads((tmp_path / CLAIMS).read_text())
    assert [(r["adapter"], r["rank"], r["text"]) for r in rows] == [
        ("b", 1, "two"),
        ("a", 1, "one"),
        ("b", 2, "three"),
    ]
    assert (rows[0]["rate_adapted"], rows[0]["rate_base"], rows[0]["ci"]) == (1.0, 0.0, [0.86, 1.0])


def test_the_page_is_told_confirmed_claims_alone_bounded_and_the_random_adapter_last() -> None:
    long = "x" * 5000
    control, own = learnt_facts(
        {"random": (claim("no", False),), "r4": (claim(long, True), claim("no", False))}
    )[::-1]
    assert (own.adapter, control.adapter, control.control) == ("r4", "random", True)
    assert [len(t.text) for t in own.triggers] == [160]
    assert control.triggers == ()
    assert own.triggers[0].rates["base_with"] == Rate(0.0, 0.0, 0.14)
