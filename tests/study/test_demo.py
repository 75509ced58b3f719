"""The demo's numbers are those that its page claims; its weights are what the report says that they are."""

from dataclasses import replace
from pathlib import Path

import pytest

from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.models.load import load_tokenizer
from deltasae_ray.models.source import resolve_model
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.inputs import open_study
from deltasae_ray.study.plan import STAGES, make_plan
from deltasae_ray.study.results import model_note
from tests.study.streamed import config

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def demo(name: str = "demo", *more: str) -> StudyConfig:
    return config([f"config={CONFIGS / name}.yaml", *more])


def test_the_demo_is_what_it_says() -> None:
    cfg = demo()
    assert (cfg.layers, cfg.fit.k, cfg.fit.sizes, cfg.adapt.ranks) == ((9, 12, 15), (8,), (256, 512), (4, 16))
    assert cfg.adapt.lr <= 3e-4 and cfg.reference.source == "builtin:gemma3-270m"


def test_the_second_demo_differs_from_the_first_in_model_and_reference_only() -> None:
    first, second = demo(), demo("demo-gemmascope")
    assert replace(second, model=first.model, reference=first.reference, storage=first.storage) == first
    assert second.reference.source.startswith("gemma-scope-2-270m-pt-res/")


@pytest.mark.demo
def test_the_demo_has_the_text_that_its_figures_need(tmp_path: Path) -> None:
    study = open_study(
        demo("demo", f"storage.root={tmp_path / 'root'}", "dry_run=true"), Storage(str(tmp_path / "root"))
    )
    corpus = study.corpus
    assert corpus.num_tokens() >= 40_000
    unrelated = sum(
        corpus.num_tokens(split, name) for split in ("fit", "eval") for name in corpus.names if name != DOMAIN
    )
    assert unrelated == pytest.approx(corpus.num_tokens() / 2, rel=0.02)
    assert corpus.names == (DOMAIN, "kjv", "pydoc")
    assert min(corpus.num_documents("eval", name) for name in corpus.names) >= 30, "or a text has no interval"
    assert study.model.num_layers == 18 and study.model.d_model == 640 and "Q4_K_M" in model_note(study)
    plan = make_plan(study, STAGES)
    assert sum(plan.seconds.values()) < 22 * 60


@pytest.mark.demo
def test_a_context_begins_with_bos_and_holds_one_document() -> None:
    cfg = demo()
    model = resolve_model(cfg.model, weights=False)
    tokenizer = load_tokenizer(model.folder)
    corpus = build_corpus(replace(cfg.corpus, fit_tokens=4000, eval_tokens=2000), tokenizer)
    assert {int(i) for unit in corpus.units for i in unit.input_ids[:, 0]} == {tokenizer.bos_token_id}
    assert all(
        unit.input_ids.shape[1] <= cfg.corpus.context_len + 1 and len(unit.doc_ids) == len(unit.input_ids)
        for unit in corpus.units
    )
