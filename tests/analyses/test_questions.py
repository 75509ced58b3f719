"""The table of analyses: an entry is asked where its control is chosen, and its rows reach the study's table."""

from typing import Any

import pytest

from deltasae_ray.analyses import questions
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.controls import CONTROLS
from deltasae_ray.analyses.questions import ANALYSES, Analysis, Asked, Rows, answers


def test_an_analysis_is_one_entry_and_is_asked_where_its_control_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always = Analysis("always", lambda asked: Rows([(asked.harvest_key, "always")]))  # type: ignore[list-item]
    chosen = Analysis("chosen", lambda _: Rows([]), control="causal")
    monkeypatch.setattr(questions, "ANALYSES", (always, chosen))
    context: Any = None
    for controls, names in ((("fast",), ["always"]), (("causal",), ["always", "chosen"])):
        found = answers(Asked(context, "harvest/x", [], DivergeConfig(controls=controls), []))
        assert list(found) == names
    assert always.of(found).rows == [("harvest/x", "always")]


def test_analyses_have_names_of_their_own_and_wait_for_controls_that_there_are() -> None:
    assert len({a.name for a in ANALYSES}) == len(ANALYSES)
    assert {a.control for a in ANALYSES} - {None} <= {c.name for c in CONTROLS}
