"""The table of controls: an entry is planned, fitted and read by leaves without a word elsewhere."""

from dataclasses import fields, replace

import pytest

from deltasae_ray.analyses import controls
from deltasae_ray.analyses.config import BUDGETS, DivergeConfig
from deltasae_ray.analyses.controls import CONTROLS, RANDOMS, SIBLINGS, Control
from deltasae_ray.analyses.divergence.figures import LeafInputs
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.study import compare
from deltasae_ray.study import controls as study_controls
from deltasae_ray.study.compare import HeldAgainst, _spec
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import control_dictionaries, control_points
from deltasae_ray.study.grid import grid_points, trials
from deltasae_ray.study.state import Made

FIT = FitConfig(d_sae=(32, 64), k=(4,))
ADAPTER = AdapterRef("r2", "", "", 2, 4.0)
ONE = DictionaryId("r2", 1, 32, 4, "topk", 0)


def test_every_role_is_a_part_of_what_figures_read() -> None:
    roles = [role for control in CONTROLS for role in control.compares]
    known = {f.name for f in fields(LeafInputs)} | {"base_control", "half_a", "half_b"}
    known |= {*SIBLINGS, *RANDOMS}
    assert len(set(roles)) == len(roles) and set(roles) <= known
    assert {c.name for c in CONTROLS} <= set(BUDGETS["full"])


def test_what_stands_beside_a_dictionary_does_not_depend_on_its_seed() -> None:
    for control in CONTROLS:
        assert len(control.fits(ONE)) == len(control.compares)
        assert control.beside(ONE) == control.beside(replace(ONE, seed=3))
        assert all((p.layer, p.shape) == (ONE.layer, ONE.shape) for p in control.fits(ONE))


def test_a_control_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example of CONTRIBUTING: a dictionary of four fifths of the documents, planned, fitted and
    named in the leaf."""
    part = Control(
        "part", ("part",), lambda one: (FitPoint(**vars(replace(one.identity, seed=77)), documents="search"),)
    )
    for module in (controls, study_controls, compare):
        monkeypatch.setattr(module, "CONTROLS", (*CONTROLS, part))
    monkeypatch.setattr(DivergeConfig, "chosen", frozenset({"part"}))
    points = control_points((1, 2), FIT, [ADAPTER], frozenset({"part"}), toy_reference=False)
    assert [(p.layer, p.d_sae, p.seed) for p in points] == [
        (1, 32, 77),
        (2, 32, 77),
        (1, 64, 77),
        (2, 64, 77),
    ]
    assert control_dictionaries(StudyConfig(fit=FIT), layers=2, trials_count=2, randoms=2) == {"part": 4}
    trial = trials([ADAPTER], FIT)[0]
    own, fitted = (
        FittedDictionary(p, str(p), "", {}, (), (), 100) for p in (*grid_points(trial, (1,), 1), points[0])
    )
    made = Made(by_tune=False, grid={trial: [own]}, controls={points[0]: fitted})
    assert _spec(made, own, ADAPTER, HeldAgainst("toy", "reference")).control("part") == fitted.key
