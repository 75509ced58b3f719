"""The table of controls: an entry is planned, fitted, read by leaves and measured without a word elsewhere."""

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from deltasae_ray.analyses import config, controls
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.controls import (
    CONTROLS,
    FOR_VISIBILITY,
    REFERENCE,
    Beside,
    Control,
    budget,
    figures_beside,
)
from deltasae_ray.analyses.leaf_spec import _ROLES_IN_KEYS
from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.metrics.inputs import LeafInputs
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.study import compare
from deltasae_ray.study import controls as study_controls
from deltasae_ray.study.compare import HeldAgainst, _spec
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import beside, control_dictionaries, control_points
from deltasae_ray.study.grid import grid_points, trials
from deltasae_ray.study.state import StudyState

FIT = FitConfig(d_sae=(32, 64), k=(4,))
ADAPTER = AdapterRef("r2", "", "", 2, 4.0)
ONE = DictionaryId("r2", 1, 32, 4, "topk", 0)


def test_every_role_belongs_to_one_control_and_those_of_earlier_studies_keep_their_keys() -> None:
    roles = [role for control in CONTROLS for role in control.fits]
    assert len(set(roles)) == len(roles)
    assert set(_ROLES_IN_KEYS) | FOR_VISIBILITY == set(roles)


def test_what_stands_beside_a_dictionary_does_not_depend_on_its_seed() -> None:
    for control in (*CONTROLS, REFERENCE):
        points = beside(control, ONE)
        assert points.keys() == control.fits.keys()
        assert points == beside(control, replace(ONE, seed=3))
        assert all((p.layer, p.shape) == (ONE.layer, ONE.shape) for p in points.values())


def test_an_unknown_control_is_refused_with_those_that_there_are() -> None:
    assert budget("fast") == {"base", "random_lora"} and budget("full") == {c.name for c in CONTROLS}
    with pytest.raises(ConfigError, match="no control 'sedes'; name fast, full or any of base, .*seeds"):
        DivergeConfig(controls=("fast", "sedes"))


def test_the_help_of_the_option_tells_what_each_control_is() -> None:
    text = " ".join(inspect.getsource(DivergeConfig).split())
    assert all(f"{c.name} (" in text for c in CONTROLS)


def test_a_control_is_one_entry_and_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING has it: a dictionary of four fifths of the documents, chosen by its name, planned,
    fitted, named in the leaf and measured."""
    part = Control(
        "part",
        {"part": Beside(77, documents="search")},
        lambda _, leaf: {"part_size": Measure(float(len(leaf.beside["part"].W_dec)))},
    )
    for module in (config, controls, study_controls, compare):
        monkeypatch.setattr(module, "CONTROLS", (*CONTROLS, part))
    chosen = DivergeConfig(controls=("part",)).chosen
    points = control_points((1, 2), FIT, [ADAPTER], chosen, toy_reference=False)
    assert [(p.layer, p.d_sae, p.seed, p.documents) for p in points] == [
        (1, 32, 77, "search"),
        (2, 32, 77, "search"),
        (1, 64, 77, "search"),
        (2, 64, 77, "search"),
    ]
    cfg = StudyConfig(fit=FIT, diverge=DivergeConfig(controls=("part",)))
    assert control_dictionaries(cfg, layers=2, trials_count=2, randoms=2) == {"part": 4}
    trial = trials([ADAPTER], FIT)[0]
    own, fitted = (
        FittedDictionary(p, str(p), "", {}, (), (), 100) for p in (*grid_points(trial, (1,), 1), points[0])
    )
    made = StudyState(by_tune=False, grid={trial: [own]}, controls={points[0]: fitted})
    spec = _spec(made, own, ADAPTER, HeldAgainst("toy", "reference"))
    assert spec.control("part") == spec.dictionaries["part"] == fitted.key
    dictionary: Any = SimpleNamespace(W_dec=range(32))
    context: Any = None
    measured = figures_beside(context, LeafInputs(dictionary, {"part": dictionary}))
    assert measured == {"part_size": Measure(32.0)}
    assert figures_beside(context, LeafInputs(dictionary)) == {}, "nothing was fitted for it"
