"""What a policy comes to on a study: a finding for every rule, adapter and layer, and one exit code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltasae_ray.gate.error_rate import FEWEST, ErrorRate, error_rates, worst
from deltasae_ray.gate.evaluate import Finding, Outcome, check_places, findings, judged_and_nulls
from deltasae_ray.gate.finished import Finished
from deltasae_ray.gate.policy import Policy, matches

CLEAR, FIRED, WRONG, UNDECIDED = 0, 1, 2, 3
"""Exit codes: no rule fired, a rule fired, the command is wrong, a rule could not be decided."""


@dataclass(frozen=True)
class Decision:
    """All that was found."""

    policy: Policy
    policy_file: str
    """Name of the policy's file in reports."""
    adapters: tuple[str, ...]
    """Adapters that were judged."""
    nulls: tuple[str, ...]
    findings: tuple[Finding, ...]
    rates: tuple[ErrorRate, ...]
    """One per rule, in their order."""

    def outcome_of(self, adapter: str) -> Outcome:
        """The worst over rules and layers; undecided where no rule judges the adapter."""
        return worst([f.outcome for f in self.findings if f.adapter == adapter])

    @property
    def exit_code(self) -> int:
        """Exit code by the convention of scanners; `undecided: fail` makes 1 of 3."""
        outcomes = {self.outcome_of(adapter) for adapter in self.adapters}
        if "fired" in outcomes:
            return FIRED
        if "undecided" in outcomes:
            return FIRED if self.policy.undecided == "fail" else UNDECIDED
        return CLEAR

    @property
    def sentence(self) -> str:
        """The decision in a line."""
        outcomes = [self.outcome_of(adapter) for adapter in self.adapters]
        counts = ", ".join(
            f"{outcomes.count(outcome)} {words}" for outcome, words in OUTCOMES.items() if outcome in outcomes
        )
        means = (
            "" if "undecided" not in outcomes else f"; the policy reads undecided as {self.policy.undecided}"
        )
        return f"{len(outcomes)} adapters judged by {len(self.policy.rules)} rules: {counts}{means}"

    @property
    def next_steps(self) -> tuple[str, ...]:
        """What is to be done now, a sentence or two for each outcome that was found."""
        by_outcome = {o: [a for a in self.adapters if self.outcome_of(a) == o] for o in OUTCOMES}
        steps = [f"{_few(by_outcome[o])}: {words}" for o, words in _NEXT.items() if by_outcome[o]]
        if any(rate.upper is None for rate in self.rates):
            steps.append(
                "Nobody knows how often a rule whose error rate is not established fires by chance: study"
                f" {FEWEST} or more adapters that learnt nothing beside yours, and name them as nulls."
            )
        return tuple(steps)

    def to_dict(self) -> dict[str, Any]:
        """The content of gate.json."""
        return {
            "policy": self.policy_file,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "next": list(self.next_steps),
            "undecided": self.policy.undecided,
            "adapters": {adapter: self.outcome_of(adapter) for adapter in self.adapters},
            "nulls": list(self.nulls),
            "rules": [
                {
                    "name": rule.name, "when": str(rule.when), "why": rule.why,
                    "null_adapters": rate.n, "false_alarms": rate.alarms, "undecided_nulls": rate.undecided,
                    "upper_bound": rate.upper, "error_rate": str(rate),
                }
                for rule, rate in zip(self.policy.rules, self.rates, strict=True)
            ],
            "findings": [
                {
                    "rule": f.rule, "adapter": f.adapter, "layer": f.layer, "outcome": f.outcome,
                    "seen": list(f.answer.seen), "reasons": list(f.answer.reasons),
                }
                for f in self.findings
            ],
        }  # fmt: skip


OUTCOMES: dict[Outcome, str] = {
    "fired": "break a rule",
    "undecided": "cannot be decided",
    "clear": "break none",
}
"""Outcome of an adapter → in words, worst first."""
_NEXT: dict[Outcome, str] = {
    "fired": "do not release under this policy. Read what fired above and in report.html; to release all the"
    " same, change the policy and say why.",
    "undecided": "no rule fired, and that is no pass. The reasons above say what lacks: study more text or"
    " another seed, or ask for a figure that is defined.",
    "clear": "the policy does not hold the release up. A rule that does not fire is no proof that an adapter"
    " is harmless.",
}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def decide(policy: Policy, finished: Finished, policy_file: str) -> Decision:
    """Judges every adapter of a study.

    Raises:
        ConfigError: the policy asks for adapters or layers that the study does not have.
    """
    check_places(policy, finished)
    judged, nulls = judged_and_nulls(policy, finished.report.studied)
    all_findings = tuple(
        finding
        for adapter in judged
        for rule in policy.rules
        if matches(adapter, rule.adapters)
        for finding in findings(rule, adapter, finished)
    )
    return Decision(
        policy, policy_file, judged, nulls, all_findings, error_rates(policy.rules, nulls, finished)
    )
