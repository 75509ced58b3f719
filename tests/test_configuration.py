"""Words and YAML that people bring: each means what YAML 1.2 and a shell's user expect, or is refused by
name."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasae_ray import yaml_core
from deltasae_ray.cli import parse
from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import cache_folder, expanded
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.storage_config import StorageConfig
from tests.fuzz import LONG, SHORT


def study(*words: str) -> StudyConfig:
    return parse(StudyConfig, words, shorthand=SHORTHAND, description="test")


def from_yaml(folder: Path, text: str) -> StudyConfig:
    (folder / "study.yaml").write_text(text)
    return study(f"config={folder / 'study.yaml'}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_users_home_wherever_a_path_is_taken(home: Path) -> None:
    (home / "study.yaml").write_text("corpus: {unrelated: [~/kjv.txt]}\n")
    cfg = study(
        "config=~/study.yaml", "storage.root=~/runs/x", "model.base=~/m", "adapters=[~/r4,~/r16]",
        "corpus.path=~/a.jsonl",
        "corpus.trained_on=[~/seen.jsonl]", "reference=~/dictionaries/layer_{layer}", "model.sharding=zero3",
        "model.offload=~/fast",
    )  # fmt: skip
    assert (cfg.storage.root, cfg.model.base, cfg.model.offload) == (
        f"{home}/runs/x",
        f"{home}/m",
        f"{home}/fast",
    )
    assert (
        cfg.adapters == (f"{home}/r4", f"{home}/r16")
        and cfg.reference.source == f"{home}/dictionaries/layer_{{layer}}"
    )
    assert (cfg.corpus.path, cfg.corpus.unrelated) == ((f"{home}/a.jsonl",), (f"{home}/kjv.txt",))
    assert cfg.corpus.trained_on == (f"{home}/seen.jsonl",)
    assert study("storage.root=file://~/runs").storage.root == f"file://{home}/runs"
    assert StorageConfig(root="~/y").root == f"{home}/y"  # also where the library makes it


def test_a_variable_that_no_shell_replaced_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for word in (
        "storage.root=$HOME/x",
        "model.base=${MODELS}/m",
        "adapters=[runs/a,$RUNS/b]",
        "corpus.path=s3://$BUCKET/a.jsonl",
        # fmt: skip
        "reference=${DICTIONARIES}",
        "corpus.trained_on=[$SEEN]",
        "tracking.uri=http://$HOST:5000",
        "config=$HOME/a.yaml",
    ):
        with pytest.raises(SystemExit) as ended:
            study(word)
        printed = capsys.readouterr().err
        assert (
            ended.value.code == 2
            and word[word.index("$") :].split("}")[0].split("/")[0].rstrip("]:5")[:4] in printed
        )
    with pytest.raises(ConfigError, match=r"no user 'nobody-of-this-name'.*\./~"):
        expanded("~nobody-of-this-name/x", "storage.root")
    assert expanded("runs/a$5,costs", "storage.root") == "runs/a$5,costs"


def test_the_cache_is_in_the_home_where_its_variable_is_empty_or_relative(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "~/.cache", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == home / ".cache" / "deltasae_ray"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/deltasae_ray")


REFUSED = [
    "layers=[5:10]", "layers=5:10", "layers=[1e3]", "layers=[1_000]", "fit.d_sae=[1_000]", "fit.steps=1_000",
    "fit.lr=1_0e-3", "layers=[on]", "layers=[yes]",
    "layers=[2024-01-01]", "layers=[[5,6],[7]]", "layers=[{5: 6}]", "dry_run=on", "dry_run=yes", "dry_run=1",
    "fit.lr=nan", "fit.lr=.inf",
    "adapt.stop_at_se=inf", "harvest.min_snr=nan", "reference.ids={5:10}", "reference.ids={5: a, 5: b}",
    "fit={k: 4, k: 5}",
]  # fmt: skip


@pytest.mark.parametrize("word", REFUSED)
def test_what_yaml_1_1_reads_otherwise_is_refused_as_a_word_and_in_a_file(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _, text = word.partition("=")
    section, _, name = key.rpartition(".")
    line = f"{section}: {{{name}: {text}}}" if section else f"{name}: {text}"
    for refuse in (lambda: study(word), lambda: from_yaml(tmp_path, line)):
        with pytest.raises(SystemExit) as ended:
            refuse()
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and (name in printed or "twice" in printed)


def test_numbers_and_words_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    text = """
layers: [010, 9]                    # 1.1: 8
adapters: [12:30, on, 1e3, 2024-01-01, "0x10", ~x/y]
tracking: {experiment: yes}
fit: {lr: 1e-3}                     # 1.1: a text
dry_run: True
"""
    cfg = from_yaml(tmp_path, text.replace("~x/y", "'null'"))
    assert cfg.layers == (10, 9) and cfg.adapters == ("12:30", "on", "1e3", "2024-01-01", "0x10", "null")
    assert (cfg.tracking.experiment, cfg.fit.lr, cfg.dry_run) == ("yes", 1e-3, True)
    assert study("adapters=['12:30',on]").adapters == ("12:30", "on")
    assert (
        study("corpus.text_field=[INST] x").corpus.text_field == "[INST] x"
    )  # a text is a text, also where it looks like a list


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fit: {k: 4}\nfit: {k: 5}", "line 2.*'fit'.*twice"),
        ("fit: {k: 4}\nfit.k: 5", r"fit\.k stands there twice"),
        ("reference: base\nreference.source: x", r"reference\.source stands there twice"),
        ("a: &x {k: 4}\nfit: {<<: *x}", "merge keys"),
        ("layers: !!python/object/apply:os.system [ls]", "tag"),
        ("a: &a [*a]", "anchors"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("[1, 2]", "mapping"),
        ("", "mapping"),
        ("storage: {root: }", "storage.root is empty"),
        ("storage: {root: ~}", "storage.root is empty"),
        ("storage:\n  root: ''", "storage.root"),
        ("adapters: [a, null]", "adapters is empty"),
        ("layers: null", "layers is empty"),
    ],
)
def test_a_file_that_says_two_things_or_nothing_is_refused_with_its_place(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        from_yaml(tmp_path, text)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


def test_aliases_that_multiply_and_endless_brackets_are_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    for text in (bomb, "[" * 20_000, "{a: " * 20_000, "- " * 20_000, "? " * 20_000):
        with pytest.raises(ConfigError):
            yaml_core.load(text, "it")


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0", "null"])
@pytest.mark.parametrize(
    "key",
    [
        "storage.root",
        "adapters",
        "model.base",
        "corpus.path",
        "corpus.unrelated",
        "layers",
        "reference",
        "fit.k",
        # fmt: skip
        "corpus.text_field",
        "tracking.experiment",
        "dry_run",
        "fit.lr",
        "controls",
        "config",
    ],
)
def test_an_unset_variable_is_refused_by_its_word(
    key: str, blank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        study(f"{key}={blank}")
    assert ended.value.code == 2 and key.split(".")[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "adapters=['']",
        "adapters=[,]",
        "adapters=[a,]",
        "adapters=[a,,b]",
        "adapters=['a',]",
        "adapters=[' ']",
        "layers=[]",
        # fmt: skip
        "corpus.path=[]",
        "corpus.path=['']",
        "reference.ids={}",
        "reference.ids={5: ''}",
        "corpus.text_field=--help",
    ],
)
def test_an_empty_value_in_a_list_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        study(word)
    assert ended.value.code == 2 and word.split("=")[0].split(".")[-1] in capsys.readouterr().err


def test_what_is_documented_as_empty_may_be_empty() -> None:
    cfg = study(
        "adapters=[]", "tracking.uri=", "reference.made_for=", "corpus.unrelated=[]", "reference.ids=null"
    )
    assert cfg == study("corpus.unrelated=[]")


KEYS = st.sampled_from(
    [
        "storage.root",
        "adapters",
        "model.base",
        "corpus.path",
        "layers",
        "reference",
        "reference.ids",
        "fit.k",
        "fit.d_sae",
        # fmt: skip
        "fit.lr",
        "dry_run",
        "corpus.split",
        "controls",
        "fit",
        "corpus",
        "",
        "config",
        "no.such",
        "harvest.sites",
    ]
)
ODD = st.sampled_from(
    [
        "5:10",
        "010",
        "1e3",
        "1_000",
        "on",
        "~",
        "~/x",
        "$HOME",
        "${X}",
        "null",
        "",
        " ",
        "a",
        "2024-01-01",
        "--help",
        "-1",
        "0x10",
        ".nan",
        # fmt: skip
        "[/b]",
        "\x00",
        "\udcff",
        "é",
        "<<",
        "*a",
        "&a b",
        "!!int 3",
        "'",
        '"',
        "{",
        "]",
        "a: b",
        "9" * 5000,
    ]
)
TEXTS = st.one_of(
    ODD,
    st.lists(ODD, max_size=4).map(lambda parts: f"[{','.join(parts)}]"),
    st.dictionaries(ODD, ODD, max_size=3).map(
        lambda pairs: "{" + ", ".join(f"{k}: {v}" for k, v in pairs.items()) + "}"
    ),
    st.text(max_size=20),
)


def words_end_cleanly(words: list[tuple[str, str]]) -> None:
    try:
        cfg = study(*(f"{key}={text}" for key, text in words))
    except SystemExit as ended:
        assert ended.code == 2
    else:
        assert cfg.storage.root.strip() and cfg.layers and all(place.strip() for place in cfg.adapters)


def files_end_cleanly(folder: Path, text: bytes) -> None:
    (folder / "study.yaml").write_bytes(text)
    before = os.listdir(folder)
    words_end_cleanly([("config", str(folder / "study.yaml"))])
    assert os.listdir(folder) == before


WORDS = st.lists(st.tuples(KEYS, TEXTS), min_size=1, max_size=3)
FILES = st.one_of(
    WORDS.map(lambda words: "\n".join(f"{key}: {text}" for key, text in words).encode("utf-8", "replace")),
    st.binary(max_size=60),
)


@SHORT
@given(words=WORDS)
def test_any_words_are_a_study_or_a_clean_end(words: list[tuple[str, str]]) -> None:
    words_end_cleanly(words)


@SHORT
@given(text=FILES)
def test_any_file_is_a_study_or_a_clean_end(text: bytes, tmp_path: Path) -> None:
    files_end_cleanly(tmp_path, text)


@pytest.mark.prove
@LONG
@given(words=WORDS, text=FILES)
def test_any_words_and_files_at_length(words: list[tuple[str, str]], text: bytes, tmp_path: Path) -> None:
    words_end_cleanly(words)
    files_end_cleanly(tmp_path, text)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "layers=[1:2]",
            r"layers='1:2' is no whole number. Several are written out, layers=\[1,2\]; there are no ranges",
        ),
        ("layers=5..10", "layers='5..10' is no whole number"),
        ("adapt.ranks=[a]", "adapt.ranks='a' is no whole number"),
        ("fit.steps=1e3", "fit.steps='1e3' is no whole number"),
        ("corpus.unrelated_share=half", "corpus.unrelated_share='half' is no number"),
        ("dry_run=yes", "dry_run='yes' must be true or false"),
        ("model.trust_remote_code=1", "must be true or false"),
    ],
)
def test_a_value_of_another_kind_is_told_with_what_to_write(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(StudyConfig, [word], shorthand=SHORTHAND, description="")
    assert ended.value.code == 2 and re.search(said, capsys.readouterr().err)
