"""A reference made from text by a job of its own: three dictionaries a layer, on documents that none shares."""

import sys
from pathlib import Path

import numpy as np
import pytest

from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.points import in_documents
from deltasae_ray.sae.made_for import BaseModel
from deltasae_ray.sae.names import THIRDS
from deltasae_ray.sae.saelens import check_reference, load_reference, resolve_references
from deltasae_ray.shards import open_shards
from deltasae_ray.storage import Storage
from deltasae_ray.study.main import main, parse_words
from deltasae_ray.study.reference import open_reference
from tests.study.words import words

MORE = ("fit.d_sae=[48]", "corpus.fit_tokens=4800", "fit.steps=60")


def test_thirds_share_no_document_and_leave_none_out() -> None:
    documents = np.array([f"document {i}" for i in range(300)])
    inside = np.stack([in_documents(documents, third) for third in THIRDS])
    assert (inside.sum(axis=0) == 1).all() and (inside.sum(axis=1) > 60).all()


@pytest.mark.parametrize("wrong", ["fit.d_sae=[48,96]", "fit.k=[4,8]", "fit.d_sae=auto"])
def test_a_reference_has_one_shape(tiny_model: Path, tmp_path: Path, wrong: str) -> None:
    cfg = parse_words(words(tiny_model, tmp_path, *MORE, wrong), "")
    with pytest.raises(ConfigError, match="a reference has one shape: give one size, one k"):
        open_reference(cfg, Storage(str(tmp_path)))


def test_a_text_too_short_for_three_dictionaries_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    cfg = parse_words(words(tiny_model, tmp_path, *MORE, "fit.d_sae=[4000]"), "")
    with pytest.raises(ConfigError, match=r"a third of the fit split has [\d,]+ tokens in \d+ documents"):
        open_reference(cfg, Storage(str(tmp_path)))


def _run(tiny_model: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reference.py", *words(tiny_model, root, *MORE, *more)])
    main("reference")


@pytest.mark.slow
@pytest.mark.parametrize(
    "deltas", ["stored", pytest.param("stream", marks=pytest.mark.prove)]
)  # a stream takes half a minute more
def test_a_reference_is_made_once_and_opens_as_any_other(
    ray_cluster: None,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    deltas: str,
) -> None:
    root = tmp_path / "root"
    _run(tiny_model, root, monkeypatch, f"storage.deltas={deltas}", "storage.window_tokens=2000")
    said = capsys.readouterr().out
    card = (root / "reference/README.md").read_text()
    assert card in said and f"reference.source={root / 'reference' / THIRDS[0]}" in said
    shards = open_shards(root)
    assert [s.name for s in shards.sources] == ["base"]
    evaluated, rows = shards.tokens("eval").used, {layer: 0 for layer in (1, 2)}
    for third in THIRDS:
        for layer, found in resolve_references(str(root / "reference" / third), (1, 2)).items():
            dictionary = load_reference(found, BaseModel(str(tiny_model), "", "", shards.d_model))
            assert dictionary.W_dec.shape == (48, shards.d_model) and dictionary.meta["documents"] == third
            fvu = check_reference(dictionary, shards.read(layer, split="eval")[evaluated])
            seen, told = card.split(f"`{third}/layer_{layer:02d}` | ")[1].split(" | ")[:2]
            # The card centres on the mean of the training rows, check_reference on that of these rows.
            assert fvu < 0.5 and abs(fvu - float(told)) < 0.01
            rows[layer] += int(seen.replace(",", ""))
    if deltas == "stored":
        assert set(rows.values()) == {int(shards.tokens("fit").used.sum())}, "every row is in one third"
    files = {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/*")}
    _run(tiny_model, root, monkeypatch, f"storage.deltas={deltas}", "storage.window_tokens=2000")
    assert (root / "reference/README.md").read_text() == card
    assert {p: p.stat().st_mtime_ns for p in root.glob("dictionaries/*/*")} == files
