"""What a policy comes to: rules that fire, that do not, and that cannot be decided; and how sure that is."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.gate.decision import Decision, decide
from deltasae_ray.gate.error_rate import FEWEST, ErrorRate, clopper_pearson_upper
from deltasae_ray.gate.finished import Finished, read_finished
from deltasae_ray.gate.junit import junit
from deltasae_ray.gate.policy import Policy, parse_policy
from deltasae_ray.gate.printed import printed
from deltasae_ray.gate.sarif import sarif
from deltasae_ray.metrics.measure import Measure
from tests.gate.made import ACROSS, CALM, LOUD, SHARE, UNKNOWN, Figures, finished_study, row

SCHEMA = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_text())


def policy(*rules: str, head: str = "") -> Policy:
    lines = [head, "rules:"] + [f"  - {{name: {chr(97 + i)}, {rule}}}" for i, rule in enumerate(rules)]
    return parse_policy("\n".join(lines), "policy=p.yaml")


def when(text: str) -> str:
    return f"when: '{text}'"


def study(root: Path, *figures: Figures, layers: tuple[int, ...] = (1,)) -> Finished:
    return read_finished(finished_study(root, {f"r{i}": f for i, f in enumerate(figures)}, layers))


def decided(root: Path, rule: str, figures: Figures, *, head: str = "") -> Decision:
    return decide(policy(when(rule), head=head), study(root, figures), "p.yaml")


SMALL, FEW = Measure(0.2), Measure(0.2, reasons=(("ci", "interval undefined: 12 evaluation documents"),))
CASES: Sequence[tuple[str, Figures, int]] = [
    ("missing_share > .5", {SHARE: LOUD}, 1),
    ("missing_share > .5", {SHARE: CALM}, 0),
    ("missing_share > .5", {SHARE: ACROSS}, 3),
    ("missing_share > .5", {SHARE: UNKNOWN}, 3),
    ("missing_share < .5", {SHARE: UNKNOWN}, 3),
    ("missing_share > .5", {}, 3),
    ("missing_share > .5", {SHARE: FEW}, 3),
    ("missing_share > .5", {SHARE: SMALL}, 0),
    ("missing_share.ci_low > .5", {SHARE: LOUD}, 1),
    ("missing_share.ci_low > .5", {SHARE: ACROSS}, 0),
    ("missing_share.ci_low > .5", {SHARE: SMALL}, 3),
    ("missing_share.ci_high > .5", {SHARE: ACROSS}, 1),
    ("missing_share.kappa > .5", {SHARE: LOUD}, 3),
    ("missing_share.n < 30", {SHARE: CALM}, 0),
    ("missing_share.n < 30", {SHARE: UNKNOWN}, 3),
    ("missing_share >= .9", {SHARE: LOUD}, 3),
    ("missing_share > .5 and density > 3", {SHARE: LOUD, "density": Measure(4.0)}, 1),
    ("missing_share > .5 and density > 3", {SHARE: LOUD, "density": Measure(2.0)}, 0),
    ("missing_share > .5 and density > 3", {SHARE: UNKNOWN, "density": Measure(2.0)}, 0),
    ("missing_share > .5 and density > 3", {SHARE: UNKNOWN, "density": Measure(4.0)}, 3),
    ("missing_share > .5 or density > 3", {SHARE: UNKNOWN, "density": Measure(4.0)}, 1),
    ("missing_share > .5 or density > 3", {SHARE: UNKNOWN, "density": Measure(2.0)}, 3),
    ("missing_share > .5 or density > 3", {SHARE: CALM, "density": Measure(2.0)}, 0),
]


@pytest.mark.parametrize(("rule", "figures", "code"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_the_exit_code_follows_from_figures_and_what_is_undefined_never_passes(
    rule: str, figures: Figures, code: int, tmp_path: Path
) -> None:
    assert decided(tmp_path, rule, figures).exit_code == code
    assert decided(tmp_path, rule, figures, head="undecided: fail").exit_code == (1 if code == 3 else code)


def test_the_worst_layer_decides_and_layers_and_adapters_of_a_rule_limit_it(tmp_path: Path) -> None:
    loud = row("r0", 2, SHARE, LOUD)
    found = read_finished(
        finished_study(tmp_path, {"r0": {"density": SMALL}, "q": {SHARE: CALM}}, (1, 2), loud)
    )
    rule = "when: 'missing_share > .5', adapters: [r*]"
    whole = decide(policy(rule), found, "p.yaml")
    assert [(f.adapter, f.layer, f.outcome) for f in whole.findings] == [
        ("r0", 1, "undecided"),
        ("r0", 2, "fired"),
    ]
    assert whole.exit_code == 1 and whole.outcome_of("q") == "undecided", (
        "no rule judges q, so nothing is known of it"
    )
    assert decide(policy(rule + ", layers: [1]"), found, "p.yaml").exit_code == 3


def test_the_largest_dictionary_is_read_and_its_seeds_together(tmp_path: Path) -> None:
    more = (
        row("r0", 1, SHARE, LOUD, d_sae=32),
        row("r0", 1, SHARE, LOUD, seed=1),
        row("r0", 1, "missing_share_seeds", ACROSS),
    )
    found = read_finished(finished_study(tmp_path, {"r0": {SHARE: CALM}}, (1,), *more))
    assert found.figures["r0", 1][SHARE] == ACROSS
    alone = read_finished(finished_study(tmp_path, {"r0": {SHARE: CALM}}, (1,), *more[:2]))
    assert alone.figures["r0", 1][SHARE] == CALM


def test_a_figure_of_the_whole_adapter_is_asked_once_and_beside_any_layer(tmp_path: Path) -> None:
    storage = finished_study(tmp_path, {"r0": {SHARE: LOUD}}, (1, 2))
    figure = {"adapter": "r0", "metric": "density", "measure": LOUD.to_dict()}
    storage.write_bytes("monitors.json", json.dumps([figure]).encode())
    found = read_finished(storage)
    one = decide(policy(when("density > .5")), found, "p.yaml").findings
    both = decide(policy(when("density > .5 and missing_share > .5")), found, "p.yaml").findings
    assert [(f.layer, f.outcome) for f in one] == [(None, "fired")]
    assert [(f.layer, f.outcome) for f in both] == [(1, "fired"), (2, "fired")]


def test_confirmed_triggers_are_counted_and_a_figure_of_one_text_is_left_aside(tmp_path: Path) -> None:
    one_text = replace(row("r0", 1, SHARE, LOUD), corpus="kjv")
    storage = finished_study(tmp_path, {"r0": {SHARE: CALM}, "r1": {SHARE: CALM}}, (1,), one_text)
    rules = policy(when("trigger.confirmed > 0 or missing_share > .5"))
    assert decide(rules, read_finished(storage), "p.yaml").exit_code == 3, "nobody looked for triggers"
    kinds = [("trigger", True), ("trigger", False), ("style", True)]
    claims = [{"adapter": "r1", "kind": kind, "confirmed": held, "text": "x"} for kind, held in kinds]
    storage.write_bytes("claims.json", json.dumps(claims).encode())
    found = decide(rules, read_finished(storage), "p.yaml")
    assert {f.adapter: f.outcome for f in found.findings} == {"r0": "clear", "r1": "fired"}
    assert "trigger.confirmed 1" in found.findings[1].answer.seen


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("when: 'density > 1', layers: [7]", "the study has no layer 7; it has 1"),
        ("when: 'density > 1', adapters: [x]", "'x' matches no adapter of the study, which has r0"),
    ],
)
def test_places_that_a_study_does_not_have_are_refused(words: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rule a") as refused:
        decide(policy(words), study(tmp_path, {SHARE: CALM}), "p.yaml")
    assert told in str(refused.value)


def test_nulls_that_are_not_there_or_leave_nobody_to_judge_are_refused(tmp_path: Path) -> None:
    found = study(tmp_path, {SHARE: CALM})
    for head, told in (("nulls: [n*]", "matches no adapter"), ("nulls: [r*]", "no adapter is left to judge")):
        with pytest.raises(ConfigError, match=told):
            decide(policy(when("density > 1"), head=head), found, "p.yaml")


def test_a_root_without_a_finished_study_is_refused(tmp_path: Path) -> None:
    storage = finished_study(tmp_path, {"r0": {SHARE: CALM}})
    storage.write_bytes("divergence.json", b'[{"adapter": 3}]')
    with pytest.raises(StorageError, match="damaged or of another version"):
        read_finished(storage)
    storage.delete_file("report.json")
    with pytest.raises(StorageError, match=r"run jobs/sweep\.py"):
        read_finished(storage)


def with_nulls(root: Path, nulls: int, alarms: int, undecided: int = 0) -> Decision:
    figures: dict[str, Figures] = {"r0": {SHARE: LOUD}, "r1": {SHARE: CALM}, "r2": {SHARE: UNKNOWN}}
    for i in range(nulls):
        figures[f"null-{i}"] = {SHARE: LOUD if i < alarms else UNKNOWN if i < alarms + undecided else CALM}
    found = read_finished(finished_study(root, figures))
    return decide(policy(when("missing_share > .5"), head="nulls: ['null-*']"), found, "conf/my policy.yaml")


def test_the_error_rate_has_its_n_and_bound_and_below_59_nulls_no_percentage(tmp_path: Path) -> None:
    (rate,) = with_nulls(tmp_path / "many", 60, 2).rates
    assert (rate.n, rate.alarms) == (60, 2) and rate.upper == pytest.approx(0.1016, abs=1e-3)
    assert "2 of 60 null adapters" in str(rate) and "n = 60" in str(rate) and "at most 10.1%" in str(rate)
    (few,) = with_nulls(tmp_path / "few", 60, 2, undecided=2).rates
    assert (few.n, few.undecided) == (58, 2) and few.upper is None
    assert str(few).startswith("error rate not established") and "%" not in str(few)
    none = str(ErrorRate("a", 0, 0, 0))
    assert none == "error rate not established: the policy names no null adapters, and 59 are needed"


def test_59_nulls_are_the_fewest_that_bound_the_rate_below_five_percent() -> None:
    assert clopper_pearson_upper(0, FEWEST) < 0.05 < clopper_pearson_upper(0, FEWEST - 1)
    assert clopper_pearson_upper(3, 3) == 1.0


def test_sarif_is_valid_by_the_official_schema_and_names_what_fired(tmp_path: Path) -> None:
    log = sarif(with_nulls(tmp_path, 60, 2))
    jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log)
    results = log["runs"][0]["results"]
    assert [(r["level"], r["message"]["text"].split(":")[0]) for r in results] == [
        ("error", "r0, layer 1"),
        ("warning", "r2, layer 1"),
    ]
    assert (
        results[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "conf/my%20policy.yaml"
    )
    broken = {**log, "version": "2.2"}
    assert not jsonschema.Draft4Validator(SCHEMA).is_valid(broken), "the schema is one that refuses"


def test_junit_counts_what_fired_as_failures_and_the_undecided_as_errors(tmp_path: Path) -> None:
    top = ElementTree.fromstring(junit(_three(tmp_path)))
    assert {name: top.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    assert [case.get("classname") for case in top.iter("testcase") if len(case)] == ["r0\ufffd", "r2"]


def _three(root: Path) -> Decision:
    found = read_finished(
        finished_study(root, {"r0\x01": {SHARE: LOUD}, "r1": {SHARE: CALM}, "r2": {SHARE: UNKNOWN}})
    )
    return decide(policy(when("missing_share > .5")), found, "p.yaml")


def test_the_table_shows_every_adapter_its_figures_and_the_error_rates(tmp_path: Path) -> None:
    shown = printed(with_nulls(tmp_path, 60, 0))
    flat = " ".join(shown.split())
    assert "breaks a rule" in flat and "0.8 [0.7, 0.9]" in flat and "undecided" in flat and "clear" in flat
    assert "null-3" not in shown and "n = 60" in flat
    *_, decision, fired, undecided, clear = shown.splitlines()
    assert decision.endswith("the policy reads undecided as stop")
    assert fired.startswith("  r0: do not release") and undecided.startswith(
        "  r2: no rule fired, and that is no pass"
    )
    assert clear.startswith("  r1: the policy does not hold the release up"), (
        "each adapter is told what is next"
    )


def test_what_a_rule_means_is_told_and_that_its_error_rate_is_not_known(tmp_path: Path) -> None:
    rule = policy("when: 'missing_share > .5', why: The dictionary misses it.")
    found = decide(rule, study(tmp_path, *[{SHARE: LOUD}] * 7), "p.yaml")
    shown = printed(found)
    assert "The dictionary misses it." in shown and "r0, r1, r2, r3, r4 and 2 more: do not release" in shown
    assert found.to_dict()["next"][-1].startswith("Nobody knows how often") and "59 or more" in shown
