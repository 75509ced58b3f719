"""The tutorials run, find what they say, and name commands that exist."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.analyses.audit.table import write_audit
from deltasae_ray.analyses.table import write_table
from deltasae_ray.command import tutorials
from deltasae_ray.report.page import write_report
from deltasae_ray.storage import Storage
from tests.report.made import make
from tests.test_readme import ROOT, check_commands

NOTEBOOKS = ROOT / "docs" / "tutorials"


def run(name: str) -> dict[str, Any]:
    """The names that a notebook has when its cells have run."""
    spec = importlib.util.spec_from_file_location(name, NOTEBOOKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    _, names = notebook.app.run()
    return dict(names)


def test_the_first_delta_of_a_random_adapter_has_nothing_to_miss() -> None:
    names = run("first_delta")
    assert names["delta"].shape == (1504, 32)
    assert names["cosine"].null is not None
    assert names["missing"].value is None and names["missing"].reason


def test_a_given_dictionary_misses_features_that_the_base_model_has_not() -> None:
    assert 0.4 < run("given_dictionary")["missing"].value < 0.95


def test_a_finished_study_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, storage = make(), Storage(str(tmp_path))
    write_report(inputs, storage)
    write_table(storage, inputs.rows)
    write_audit(storage, inputs.audits)
    monkeypatch.setenv("DELTASAE_STUDY", str(tmp_path))
    names = run("reading_a_report")
    assert names["labels"] == {"r4": "INCONCLUSIVE", "r16": "PARTLY VISIBLE"}
    assert (names["sure"]["value"] < 0.9).all() and len(names["latents"])


@pytest.mark.parametrize("name", sorted(p.stem for p in NOTEBOOKS.glob("*.py")))
def test_a_tutorial_is_a_page_whose_commands_exist(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tutorials.page((NOTEBOOKS / f"{name}.py").read_text(), f"{name}.py")
    assert page.startswith("# ") and "mo.md(" not in page and "\nreturn" not in page
    check_commands(page, tmp_path, monkeypatch)
