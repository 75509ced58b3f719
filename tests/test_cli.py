import dataclasses
import re
import typing
from pathlib import Path

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.study.config import SHORTHAND, StudyConfig

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml")
    if path.stem != "arena"  # of a job with words of its own
)


def study(*words: str) -> StudyConfig:
    return parse(StudyConfig, words, shorthand=SHORTHAND, description="test")


def test_the_words_of_the_readme() -> None:
    cfg = study(
        "model.base=google/gemma-2-9b", "adapters=[runs/r4,runs/r16]", "corpus.path=s3://bucket/alpaca.jsonl",
        "corpus.context_len=256",
        "layers=[5,10,18]", "fit.d_sae=[4096,16384]", "fit.k=32", "fit.seeds=2", "reference=base", "storage.root=s3://bucket/study",
        "tracking.uri=http://mlflow:5000",
    )  # fmt: skip
    assert cfg.adapters == ("runs/r4", "runs/r16")
    assert cfg.corpus.path == ("s3://bucket/alpaca.jsonl",) and cfg.corpus.context_len == 256
    assert (
        cfg.layers == (5, 10, 18)
        and cfg.fit.d_sae == (4096, 16384)
        and cfg.fit.k == (32,)
        and cfg.fit.seeds == 2
    )
    assert (cfg.reference.source, cfg.storage.root, cfg.tracking.uri) == (
        "base",
        "s3://bucket/study",
        "http://mlflow:5000",
    )


def test_a_size_that_follows_the_deltas_is_a_word_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("fit: {d_sae: auto}\n")
    for word in ("fit.d_sae=auto", f"config={tmp_path / 'a.yaml'}"):
        assert study(word).fit.d_sae == "auto" and study(word).fit.sizes == (256,)
    assert study("fit.d_sae=512").fit.d_sae == (512,)


def test_reference_ids_by_layer() -> None:
    assert study(
        "reference=some-release", "reference.ids={5: layer_5/width_16k, 10: other}"
    ).reference.ids == {5: "layer_5/width_16k", 10: "other"}


def test_a_later_word_wins_over_a_file_and_over_an_earlier_word(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("layers: [1, 2]\nfit: {k: 4, d_sae: [64]}\nreference: base\n")
    cfg = study("layers=[7]", f"config={tmp_path / 'a.yaml'}", "fit.k=2")
    assert cfg.layers == (1, 2) and cfg.fit.k == (2,) and cfg.fit.d_sae == (64,)


def test_numbers_are_not_read_as_yaml_reads_them() -> None:
    assert study("adapters=[0123]").adapters == ("0123",)
    assert study("fit.lr=1e-3").fit.lr == 1e-3
    assert study("dry_run=true").dry_run is True


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("corpus.contextlen=5", "corpus.context_len"),
        ("corpus.context_len=many", "many"),
        ("fit.k=[600]", "lower k or raise d_sae"),
        ("fit.d_sae=large", "large"),
        ("fit.max_concurrent_trials=-1", "fit.max_concurrent_trials=-1"),
        ("nonsense", "key=value"),
        ("config=/no/such.yaml", "cannot be read"),
        ("adapt.lr=0.1", "adapt.lr"),
    ],
)
def test_a_bad_word_is_named_with_a_remedy(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        study(word)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "storage.password=hidden0001",
        "hf_token=hidden0001",
        "storage={password: hidden0001}",
        "x={a: {api_key: hidden0001}}",
    ],
)
def test_a_secret_under_an_unknown_word_is_not_shown(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("{" + word.replace("=", ": ", 1) + "}")
    for words in (word, f"config={tmp_path / 'a.yaml'}"):
        with pytest.raises(SystemExit) as ended:
            study(words)
        told = capsys.readouterr()
        assert ended.value.code == 2 and "hidden0001" not in told.out + told.err and "environment" in told.err
    with pytest.raises(SystemExit):
        study("corpus.fit_token=2400")
    assert "corpus.fit_tokens" in capsys.readouterr().err, "a misspelt word is told as one"


def test_help_explains_every_field_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        study("--help")
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for said in ("corpus.context_len", "BOS not counted", "fit.d_sae", "adapt.max_tokens", "storage.root"):
        assert said in printed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert study(f"config={path}").layers


def test_configs_are_shipped() -> None:
    assert {"demo.yaml", "demo-gemmascope.yaml"} <= {p.name for p in CONFIGS}


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("paper-")], ids=lambda p: p.stem)
def test_the_papers_presets_train_at_its_learning_rate_and_leave_dead_rows_dead(path: Path) -> None:
    fit = study(f"config={path}").fit
    (size,), (k,), (architecture,) = fit.sizes, fit.k, fit.architecture
    recipe = FitPoint("r4", 10, size, k, architecture, 0).recipe(fit)
    assert (
        recipe.rate(recipe.steps // 2) == pytest.approx(1e-3, rel=1e-3)
        and recipe.l1 == 0.15
        and recipe.auxk == 0
    )


@pytest.mark.parametrize(
    "words", [("reference.source=a", "reference=b"), ("reference=a", "reference.source=b")]
)
def test_the_last_of_a_word_and_its_short_form_wins(words: tuple[str, str], tmp_path: Path) -> None:
    assert study(*words).reference.source == "b"
    (tmp_path / "a.yaml").write_text("{reference: {source: base}, diverge: {controls: [full]}}")
    cfg = study(f"config={tmp_path / 'a.yaml'}", "reference=b", "controls=[fast]")
    assert (cfg.reference.source, cfg.diverge.controls) == ("b", ("fast",))


def fields(cls: type, key: str = "") -> list[str]:
    """Dotted names of all settings."""
    found = []
    for name, kind in typing.get_type_hints(cls).items():
        inner = f"{key}{name}"
        found += fields(kind, f"{inner}.") if dataclasses.is_dataclass(kind) else [inner]
    return found


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study("--help")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    # from one setting to the next: its type, what it means, and its default
    parts = re.split(r"(?m)^\W*--(?=[a-z0-9_.]+ )", printed)
    told = {part.split(" ", 1)[0]: " ".join(part.replace("│", " ").split()[1:]) for part in parts[1:]}
    assert set(told) >= set(fields(StudyConfig))
    assert not [
        name
        for name, text in told.items()
        if len(re.sub(r"[({\[].*?[)}\]]|[A-Z|.]+\b", "", text).split()) < 3
    ]
