"""A study's options: few, each with a reason, and the words of earlier versions are gone."""

import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltasae_ray.adapt.run import trainings
from deltasae_ray.analyses.leaf_spec import settings_of
from deltasae_ray.cli import option_names, parse
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.storage import digest
from deltasae_ray.study.config import FIRST, SHORTHAND, StudyConfig

ROOT = Path(__file__).parents[2]
MOST = 80
GONE = (
    *(f"adapt.{name}" for name in ("warmup_steps", "eval_every", "checkpoint_every", "max_failures",
        "cpus_per_worker", "gpus_per_worker")),
    *(f"fit.{name}" for name in ("cpus_per_worker", "checkpoint_every", "max_failures", "search_over")),
    *(f"diverge.{name}" for name in ("k", "null_draws", "top_contexts", "seed")),
    "corpus.adapt_tokens", "corpus.marker", "corpus.reply", "gangs.max_restarts", "harvest.seed",
    "storage.shared", "model.offload_folder",
)  # fmt: skip


def study(*words: str, **more: Any) -> StudyConfig:
    return parse(StudyConfig, words, shorthand=SHORTHAND, description="test", **more)


def reasons(text: str) -> dict[str, str]:
    """Option → when to set it, of the table in docs/options.md."""
    return dict(re.findall(r"(?m)^\| `([a-z0-9_.]+)` \| (.+?) \|$", text))


def test_there_are_few_options_and_each_has_a_reason_of_its_own() -> None:
    options, told = list(option_names(StudyConfig)), reasons((ROOT / "docs/options.md").read_text())
    assert len(options) <= MOST, f"{len(options)} options: CONTRIBUTING says what a new one must prove"
    assert list(told) == options, "docs/options.md names every option, in order, and says when to set it"
    assert all(len(reason.split()) >= 4 for reason in told.values())


@pytest.mark.parametrize("key", GONE)
def test_a_word_that_is_gone_fails_as_any_unknown_word_does(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section, _, name = key.partition(".")
    (tmp_path / "study.yaml").write_text(f"{section}: {{{name}: 1}}\n")
    for word, place in ((f"{key}=1", ""), (f"config={tmp_path / 'study.yaml'}", "study.yaml: ")):
        with pytest.raises(SystemExit) as ended:
            study(word)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and f"{place}there is no option '{key}': did you mean " in error
        meant = re.search(r"did you mean (\S+)\??( or|\?)", error)
        assert meant and meant[1] in set(option_names(StudyConfig))


def test_a_misspelt_option_is_told_by_its_name_and_one_with_dashes_is_read() -> None:
    assert study("corpus.context-len=40").corpus.context_len == 40
    for wrong, right in (
        ("d_sae", "fit.d_sae"),
        ("corpus.contextlen", "corpus.context_len"),
        ("storage.rot", "storage.root"),
        ("seed", "corpus.seed"),
    ):
        with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("sys.stderr", SimpleNamespace(write=said.append, flush=lambda: None))
            study(f"{wrong}=1")
        assert right in "".join(said)


def test_help_begins_with_the_twenty_options_that_matter_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study("--help", first=FIRST)
    head, _, groups = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).partition(
        "All options by group:"
    )
    lines = [line.split(None, 1) for line in head.partition("matter first:")[2].splitlines() if line.strip()]
    assert [tuple(line) for line in lines] == list(FIRST.items()), "one line each, in order"
    assert len(FIRST) == 20 and set(FIRST) <= set(option_names(StudyConfig))
    assert all(len(key) + len(line) <= 90 for key, line in FIRST.items())
    assert all(f"--{name} " in groups for name in option_names(StudyConfig))


KEYS = {
    "demo": ("a576d0d6406378e8", "758b1e2d2d9848a5", "fb971b30a07ad7de"),
    "demo-gemmascope": ("a576d0d6406378e8", "758b1e2d2d9848a5", "fb971b30a07ad7de"),
    "paper-gemma2-9b": ("938eda81ea91b06e", "40cb1a2199855d76", "fb971b30a07ad7de"),
    "paper-gemma3-270m": ("e15f05045e0accf7", "1dcb81b86cca217d", "fb971b30a07ad7de"),
}
"""Shipped study → digests of its adapters' and dictionaries' keys and of the settings of its measures, as
they were with 90 options."""


@pytest.mark.parametrize("name", KEYS)
def test_what_shipped_studies_made_keeps_its_key(name: str) -> None:
    cfg = study(f"config={ROOT}/jobs/configs/{name}.yaml")
    model: Any = SimpleNamespace(digest="m")
    adapters = [t.key for t in trainings(model, Corpus((), ()), cfg.adapt) if t.seed == 0]
    grid = [
        (d, k, a, s) for d in cfg.fit.sizes for k in cfg.fit.k for a in cfg.fit.architecture for s in (0, 1)
    ]
    dictionaries = [FitPoint("r4", 9, *shape).key("h", {"r4": "x"}, cfg.fit) for shape in grid]
    assert (digest(adapters), digest(dictionaries), digest(asdict(settings_of(cfg.diverge)))) == KEYS[name]
