"""How often a rule fires on adapters that learnt nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from deltasae_ray.gate.evaluate import WORST, Outcome, findings
from deltasae_ray.gate.finished import Finished
from deltasae_ray.gate.policy import Rule

FEWEST = 59
"""Nulls below which no rate is claimed: 0 alarms of 59 bound the rate below 5 % with 95 % confidence."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ErrorRate:
    """False alarms of a rule over null adapters."""

    rule: str
    n: int
    """Null adapters for which the rule could be decided."""
    alarms: int
    undecided: int
    """Null adapters for which it could not."""

    @property
    def upper(self) -> float | None:
        """Upper bound of the false-alarm rate (Clopper and Pearson 1934, one-sided, 95 %); None under 59
        nulls."""
        return clopper_pearson_upper(self.alarms, self.n) if self.n >= FEWEST else None

    def __str__(self) -> str:
        """The rate with its counts, or that it is not established."""
        also = f"; {self.undecided} more undecided" if self.undecided else ""
        counts = f"{self.alarms} of {self.n} null adapters fire it{also}"
        if not self.n + self.undecided:
            return f"error rate not established: the policy names no null adapters, and {FEWEST} are needed"
        if self.upper is None:
            return f"error rate not established: {counts}, and {FEWEST} that are decided are needed"
        return (
            f"{counts}: false alarms {self.alarms / self.n:.1%} of {self.n} nulls, at most {self.upper:.1%}"
            f" (Clopper-Pearson, {CONFIDENCE:.0%} confidence, n = {self.n})"
        )


def clopper_pearson_upper(alarms: int, n: int) -> float:
    """One-sided upper bound of a rate of which `alarms` of `n` were seen."""
    return 1.0 if alarms >= n else float(stats.beta.ppf(CONFIDENCE, alarms + 1, n - alarms))


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The worst of several places; undecided where there is none."""
    return sorted(outcomes, key=WORST.index)[0] if outcomes else "undecided"


def error_rates(rules: Sequence[Rule], nulls: Sequence[str], finished: Finished) -> tuple[ErrorRate, ...]:
    """Tries every rule on every null adapter, whichever adapters the rule judges."""
    rates = []
    for rule in rules:
        outcomes = [worst([f.outcome for f in findings(rule, null, finished)]) for null in nulls]
        undecided = outcomes.count("undecided")
        rates.append(ErrorRate(rule.name, len(outcomes) - undecided, outcomes.count("fired"), undecided))
    return tuple(rates)
