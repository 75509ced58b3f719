import json
import os
from pathlib import Path

import pytest

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.errors import ConfigError, CorpusError
from tests.corpus.reading import read_documents
from tests.corpus.test_contexts import Words


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_splits_share_no_document() -> None:
    corpus = build_corpus(CorpusConfig(fit_tokens=5000, eval_tokens=5000), Words())
    fit, evaluated = ({d for u in corpus.of(s) for d in u.doc_ids} for s in ("fit", "eval"))
    adapt = {c.doc_id for c in corpus.adapt}
    assert fit and evaluated and adapt
    assert not fit & evaluated and not fit & adapt and not evaluated & adapt


def test_budgets_are_met_and_half_of_them_is_unrelated() -> None:
    corpus = build_corpus(CorpusConfig(fit_tokens=8000, eval_tokens=4000), Words())
    assert corpus.names == ("domain", "kjv", "pydoc")
    for split, budget in (("fit", 8000), ("eval", 4000)):
        assert abs(corpus.num_tokens(split) - budget) < 3 * 129
        assert abs(corpus.num_tokens(split, "domain") - budget / 2) < 129
    assert corpus.num_documents("eval") >= 30


def test_the_key_follows_the_tokens_and_nothing_else() -> None:
    cfg = CorpusConfig(fit_tokens=2000, eval_tokens=2000)
    assert build_corpus(cfg, Words()).key == build_corpus(cfg, Words()).key
    assert (
        build_corpus(cfg, Words()).key
        != build_corpus(CorpusConfig(fit_tokens=3000, eval_tokens=2000), Words()).key
    )


def test_jsonl_parquet_and_text_read_alike(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": "a", "body": "one two"}, {"id": "b", "body": " "}, {"id": "c", "body": "three"}]
    path = jsonl(tmp_path / "t.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_text("one two")
    expected = [("a", "one two"), ("c", "three")]
    assert [(d.id, d.text) for d in read_documents(path, "body")] == expected
    assert [(d.id, d.text) for d in read_documents(str(tmp_path / "t.parquet"), "body")] == expected
    assert [d.text for d in read_documents(str(tmp_path / "t.txt"))] == ["one two"]


def test_bad_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        list(read_documents(str(tmp_path / "none.jsonl")))
    with pytest.raises(CorpusError, match="holds no text"):
        build_corpus(CorpusConfig(path=(jsonl(tmp_path / "empty.jsonl", []),), fit_tokens=30_000), Words())
    with pytest.raises(CorpusError, match="line 2.*text_field"):
        list(read_documents(jsonl(tmp_path / "field.jsonl", [{"text": "x"}, {"prompt": "x"}])))
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n{"te')
    with pytest.raises(CorpusError, match="line 2"):
        list(read_documents(str(tmp_path / "broken.jsonl")))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(CorpusError, match="png"):
        list(read_documents(str(tmp_path / "image.png")))
    with pytest.raises(CorpusError, match="shakespeare, kjv and pydoc"):
        list(read_documents("builtin:bible"))


def test_a_store_that_does_not_answer_is_a_typed_error_without_the_key() -> None:
    path = "s3://ann:hidden0001@texts/x.jsonl?scheme=http&endpoint_override=127.0.0.1:9"
    with pytest.raises(CorpusError, match=r"s3://\*\*\*@texts/x.jsonl.* cannot be read"):
        list(read_documents(path))


def test_what_is_told_of_a_text_holds_no_key_of_its_address(tmp_path: Path) -> None:
    """The plan, the page and MLflow show it."""
    folder = tmp_path / "texts?sig=hidden0001&x"
    folder.mkdir()
    path = jsonl(folder / "t.jsonl", [{"text": f"{i} " + "w " * 200} for i in range(40)] + [{"text": 5}])
    cfg = CorpusConfig(path=(path,), unrelated=(), fit_tokens=300, eval_tokens=300, bad_rows="skip")
    notes = " ".join(build_corpus(cfg, Words()).notes)
    assert "t.jsonl, row" in notes or "t.jsonl, line 41" in notes
    assert "hidden0001" not in notes


def test_a_name_of_a_text_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "a file elsewhere"}')
    for path in (
        f"builtin:{tmp_path}/mine",
        f"builtin:../{os.path.relpath(tmp_path, '/')}/mine",
        "builtin:../data/kjv",
    ):
        with pytest.raises(CorpusError, match="builtin texts are shakespeare, kjv and pydoc"):
            list(read_documents(path))
    for path in (
        "owner/name/../../../../etc",
        "owner/name@../../x",
        "owner",
        "../name",
        "owner/name@v1/a/..",
    ):
        with pytest.raises(CorpusError, match="of which no part is"):
            list(read_documents(f"hf://datasets/{path}"))


def test_a_repeated_document_id_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"id": "a", "text": "w " * 20}, {"id": "a", "text": "v " * 20}])
    with pytest.raises(CorpusError, match="stands twice"):
        build_corpus(CorpusConfig(path=(path,), fit_tokens=30_000), Words())


def test_too_few_documents_for_a_split_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"id": "a", "text": "w " * 20}])
    with pytest.raises(CorpusError, match="split holds no document"):
        build_corpus(CorpusConfig(path=(path,), unrelated=(), fit_tokens=30_000), Words())


def test_impossible_budgets_are_refused_at_birth() -> None:
    with pytest.raises(ConfigError, match="context_len=4"):
        CorpusConfig(context_len=4)
    with pytest.raises(ConfigError, match="add up to 1"):
        CorpusConfig(split=(0.5, 0.5, 0.5))
