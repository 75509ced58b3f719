"""A study asked from Python refuses what the command refuses, as an error that a program can catch."""

from pathlib import Path

import pytest

import deltasae_ray as ds
from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.report.page import write_report
from deltasae_ray.storage import Storage
from tests.report.made import make


def test_options_are_those_of_the_command() -> None:
    study = ds.Study("model", adapters=["a", "b"], text="x.jsonl", options={"fit.k": 16, "layers": [5, 10]})
    assert (study.cfg.adapters, study.cfg.corpus.path, study.cfg.layers) == (
        ("a", "b"),
        ("x.jsonl",),
        (5, 10),
    )
    assert study.cfg.fit.k == (16,) and study.cfg.storage.root == "runs/study"


@pytest.mark.parametrize(
    ("options", "told"), [({"fit.q": 1}, "did you mean"), ({"layers": ["x"]}, "is no whole number")]
)
def test_an_option_that_does_not_exist_or_a_bad_value_is_a_typed_error(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ds.Study("model", options=options)


def test_results_that_are_not_there_yet_say_what_makes_them(tmp_path: Path) -> None:
    study = ds.Study("model", root=str(tmp_path / "a<b"))
    for read in (study.table, study.latents, study.page, lambda: study.verdicts):
        with pytest.raises(StorageError, match=r"call \.run\(\)"):
            read()
    assert "a&lt;b" in study._repr_html_(), "in a notebook, texts are no markup"


def test_a_finished_study_shows_its_answers_and_draws_its_figures(tmp_path: Path) -> None:
    write_report(make(), Storage(str(tmp_path)))
    study = ds.Study("model", root=str(tmp_path))
    assert [v.label for v in study.verdicts] == ["INCONCLUSIVE", "PARTLY VISIBLE"]
    shown = study._repr_html_()
    assert "Did it change the model?" in shown and "◐ In part" in shown and "&lt;b&gt;heron" in shown
    study.figure("missing_share").save(tmp_path / "figure.svg")
    assert "Missing share M(8)" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(ConfigError, match="no figure 'x'; it has visible_share"):
        study.figure("x")
