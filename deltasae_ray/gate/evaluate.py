"""Rules over figures, with three outcomes: a rule fires, does not, or cannot be decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.gate.finished import Finished
from deltasae_ray.gate.grammar import Comparison, Condition, comparisons
from deltasae_ray.gate.names import FigurePart
from deltasae_ray.gate.policy import Policy, Rule, matches
from deltasae_ray.metrics.measure import Measure

Outcome = Literal["fired", "undecided", "clear"]
WORST: tuple[Outcome, ...] = ("fired", "undecided", "clear")
"""Worst first."""


@dataclass(frozen=True)
class Answer:
    """What is known of a condition at one place."""

    outcome: Outcome
    seen: tuple[str, ...]
    """Every figure that was read, with its interval."""
    reasons: tuple[str, ...] = ()
    """Why it cannot be decided."""


@dataclass(frozen=True)
class Finding:
    """A rule at one place."""

    rule: str
    adapter: str
    layer: int | None
    """None where the rule's figures are of the whole adapter."""
    answer: Answer

    @property
    def outcome(self) -> Outcome:
        return self.answer.outcome


def judged_and_nulls(policy: Policy, studied: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adapters that are judged, and the nulls.

    Raises:
        ConfigError: nothing is left to judge, or a pattern of nulls matches no adapter.
    """
    if idle := [p for p in policy.nulls if not any(matches(name, [p]) for name in studied)]:
        raise ConfigError(f"nulls: {idle[0]!r} matches no adapter of the study, which has {_listed(studied)}")
    nulls = tuple(name for name in studied if matches(name, policy.nulls))
    judged = tuple(name for name in studied if name not in nulls)
    if not judged:
        raise ConfigError(
            f"no adapter is left to judge: the study has {_listed(studied)}, all of them nulls of the policy"
            if studied
            else "the study has no adapters to judge"
        )
    return judged, nulls


def check_places(policy: Policy, finished: Finished) -> None:
    """Whether every rule asks of adapters and layers that the study has.

    Raises:
        ConfigError: one does not; its name and what the study has are given.
    """
    studied, layers = finished.report.studied, finished.report.layers
    for rule in policy.rules:
        if idle := [p for p in rule.adapters if not any(matches(name, [p]) for name in studied)]:
            raise ConfigError(
                f"rule {rule.name}: adapters: {idle[0]!r} matches no adapter of the study, which has"
                f" {_listed(studied)}"
            )
        if missing := [layer for layer in rule.layers if layer not in layers]:
            raise ConfigError(
                f"rule {rule.name}: the study has no layer {missing[0]}; it has {', '.join(map(str, layers))}"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def findings(rule: Rule, adapter: str, finished: Finished) -> list[Finding]:
    """The rule at every layer that it names, or once where all its figures are of whole adapters."""
    whole = all(finished.whole(c.figure.name) for c in comparisons(rule.when))
    places: Sequence[int | None] = [None] if whole else rule.layers or finished.report.layers
    return [
        Finding(rule.name, adapter, layer, answer(rule.when, adapter, layer, finished)) for layer in places
    ]


def answer(condition: Condition, adapter: str, layer: int | None, finished: Finished) -> Answer:
    """Kleene's logic: `or` fires where a part does, `and` is clear where a part is, whatever else is not
    known."""
    if isinstance(condition, Comparison):
        return _compared(condition, adapter, layer, finished)
    parts = [answer(part, adapter, layer, finished) for part in condition.parts]
    seen = tuple(dict.fromkeys(text for part in parts for text in part.seen))
    outcomes = {part.outcome for part in parts}
    decides: Outcome = "fired" if condition.word == "or" else "clear"
    if decides in outcomes:
        return Answer(decides, seen)
    if "undecided" in outcomes:
        return Answer("undecided", seen, tuple(dict.fromkeys(r for part in parts for r in part.reasons)))
    return Answer("clear" if condition.word == "or" else "fired", seen)


def _compared(comparison: Comparison, adapter: str, layer: int | None, finished: Finished) -> Answer:
    name = comparison.figure.name
    at = None if finished.whole(name) else layer
    measure = finished.figures.get((adapter, at), {}).get(name)
    if measure is None:
        where = "the whole adapter" if at is None else "this layer"
        return Answer("undecided", (), (f"{name} was not measured for {where}",))
    seen = (_seen(comparison, measure),)
    number = part_of(measure, comparison.figure)
    if number is None:
        why = measure.reason or f"it has no {comparison.figure.part}"
        return Answer("undecided", seen, (f"{comparison.figure} is undefined: {why}",))
    if comparison.figure.part == "value" and (open_ := _open(comparison, measure)):
        return Answer("undecided", seen, (f"{name}: {open_}",))
    return Answer("fired" if _holds(comparison, number) else "clear", seen)


def _open(comparison: Comparison, measure: Measure) -> str:
    """Why the value alone does not decide; empty where it does."""
    if measure.ci is None:
        return measure.why("ci")
    low, high = measure.ci
    if low <= comparison.limit <= high:
        return f"its interval [{low:.3g}, {high:.3g}] lies across {comparison.limit:g}"
    return ""


def _seen(comparison: Comparison, measure: Measure) -> str:
    if comparison.figure.part == "value":
        return f"{comparison.figure.name} {measure:.3g}"
    number = part_of(measure, comparison.figure)
    return f"{comparison.figure} {'undefined' if number is None else format(number, '.3g')}"


def _holds(comparison: Comparison, number: float) -> bool:
    limit = comparison.limit
    return {">": number > limit, ">=": number >= limit, "<": number < limit, "<=": number <= limit}[
        comparison.operator
    ]


def part_of(measure: Measure, figure: FigurePart) -> float | None:
    """The number that is meant; None where it is undefined. Nothing of an undefined figure is a number."""
    if measure.value is None:
        return None
    ends = {"ci_low": (measure.ci, 0), "ci_high": (measure.ci, 1)}
    ends |= {"kappa_low": (measure.kappa_ci, 0), "kappa_high": (measure.kappa_ci, 1)}
    if figure.part in ends:
        pair, end = ends[figure.part]
        return None if pair is None else pair[end]
    return getattr(measure, figure.part)
