"""Which chat template is used: never one that nobody chose, and what was chosen is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.corpus.template import read_template, set_template
from deltasae_ray.errors import CorpusError
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.inputs import open_study
from deltasae_ray.study.plan import STAGES, make_plan
from tests.corpus.tokenizers import TAGS, byte_tokenizer
from tests.study.words import words

OTHER = TAGS.replace("[", "{").replace("]", "}").replace("{{ m.role }}", "{ {{- m.role -}} }")


def folder(path: Path, template: Any, name: str = "tokenizer_config.json") -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_text(
        template if name.endswith(".jinja") else json.dumps({"chat_template": template, "eos_token": "</s>"})
    )
    return path


def chosen(template: str = "", own: str = "", **adapters: Path) -> tuple[Any, tuple[str, ...]]:
    tokenizer = byte_tokenizer.__wrapped__(own)
    told = set_template(CorpusConfig(format="chat", chat_template=template), tokenizer, adapters)
    return tokenizer.chat_template, told


def test_an_adapter_s_template_is_used_where_the_base_has_none_and_told(tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "chat_template.jinja", "chat_template.json"):
        used, told = chosen(a=folder(tmp_path / name.replace(".", ""), TAGS, name), bare=tmp_path)
        assert used == TAGS
        assert told == (
            (
                "conversations are rendered by the chat template in the folder of adapter a; bare came"
                " without one"
            ),
        )


def test_without_any_template_the_alpaca_format_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError,
        match=(
            "base tokenizer has no chat template, and no adapter folder holds one: set corpus.chat_template"
            " .* alpaca"
        ),
    ):
        chosen(a=tmp_path)
    used, told = chosen("alpaca", a=tmp_path)
    assert not used and told == (
        "conversations are rendered in the Alpaca format (corpus.chat_template=alpaca)",
    )
    assert "although the base tokenizer has a chat template" in chosen("alpaca", own=TAGS)[1][0]


def test_a_corpus_without_a_template_is_refused_before_it_is_read() -> None:
    with pytest.raises(CorpusError, match="the tokenizer has no chat template: set corpus.chat_template"):
        build_corpus(CorpusConfig(format="chat", fit_tokens=30_000), byte_tokenizer())


def test_adapters_with_different_templates_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", TAGS), folder(tmp_path / "b", OTHER)
    for own in ("", TAGS):
        with pytest.raises(
            CorpusError,
            match="adapters a and b come with different chat templates.*corpus.chat_template=FOLDER",
        ):
            chosen(own=own, a=a, b=b)
    assert chosen(str(b), a=a, b=b)[0] == OTHER
    assert chosen(a=a, b=folder(tmp_path / "same", TAGS))[0] == TAGS


def test_the_base_s_template_stays_and_another_of_the_adapter_is_told(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", OTHER)
    used, told = chosen(own=TAGS, a=a)
    assert (
        used == TAGS
        and "adapter a comes with another one, which corpus.chat_template=adapter takes" in told[0]
    )
    assert chosen("adapter", own=TAGS, a=a)[0] == OTHER
    assert chosen(own=TAGS, a=folder(tmp_path / "same", TAGS)) == (TAGS, ())
    with pytest.raises(CorpusError, match="no adapter folder holds one"):
        chosen("adapter", own=TAGS)


def test_a_template_is_named_by_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.jinja").write_text(OTHER)
    for path in (str(tmp_path / "mine.jinja"), "~/mine.jinja", str(folder(tmp_path / "f", OTHER))):
        assert chosen(path, own=TAGS)[0] == OTHER
    with pytest.raises(CorpusError, match="none.jinja cannot be read"):
        chosen(str(tmp_path / "none.jinja"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(CorpusError, match="bare holds no chat template"):
        chosen(str(tmp_path / "bare"))


def test_several_templates_in_one_config_are_kept_by_name(tmp_path: Path) -> None:
    named = [{"name": "default", "template": TAGS}, {"name": "tool_use", "template": OTHER}]
    assert chosen(a=folder(tmp_path / "a", named))[0] == {"default": TAGS, "tool_use": OTHER}


@pytest.mark.parametrize(
    "text",
    [
        '{"chat_template": 7}',
        '{"chat_template": [1]}',
        '{"chat_template": "x',
        '["chat_template"]',
        '{"chat_template": {"a": 1}}',
        "chat_template" + "[" * 99_999,
    ],
)
def test_a_config_that_holds_no_template_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(CorpusError, match="tokenizer_config.json"):
        read_template(tmp_path)


def test_turn_markers_that_the_base_reads_in_pieces_are_told(tmp_path: Path) -> None:
    _, told = chosen(a=folder(tmp_path / "a", "<|im_start|>" + TAGS))
    assert (
        told[1]
        == "<|im_start|> of the chat template are no tokens of the base tokenizer, and are read in pieces"
    )


def test_a_study_renders_by_the_template_in_the_adapter_s_folder_and_its_plan_says_so(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    adapter = Path(shutil.copytree(tiny_adapters[0], tmp_path / "tuned"))
    folder(adapter, TAGS, "chat_template.jinja")
    turns = [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "an answer of some words"},
    ]
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps({"id": str(i), "messages": turns}) + "\n" for i in range(60)))
    more = (f"adapters=[{adapter}]", f"corpus.path=[{chat}]", "corpus.format=chat", "dry_run=true")
    study = open_study(
        parse(StudyConfig, words(tiny_model, tmp_path / "root", *more), shorthand=SHORTHAND, description=""),
        Storage(str(tmp_path / "root")),
    )
    unit = next(u for u in study.corpus.units if u.corpus == "domain")
    tokenizer = byte_tokenizer(TAGS)
    assert tokenizer.decode(unit.input_ids[0]).startswith("<s>[user]what?</s>[assistant]an")
    assert "rendered by the chat template in the folder of adapter" in str(make_plan(study, STAGES))
