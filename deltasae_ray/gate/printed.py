"""A decision as the table that a terminal shows."""

import shutil
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltasae_ray.gate.decision import Decision
from deltasae_ray.gate.evaluate import Finding

_SHOWN = {"fired": "breaks a rule", "undecided": "undecided", "clear": "clear"}
_NARROWEST, _WIDEST = 90, 160


def printed(decision: Decision) -> str:
    """One row per adapter and finding that is not clear; a row for an adapter that breaks no rule; then what
    every rule means and its error rate, the decision, and what is to be done now."""
    table = Table("adapter", "outcome", "rule", "layer", "what was seen", show_edge=False, pad_edge=False)
    for adapter in decision.adapters:
        findings = [f for f in decision.findings if f.adapter == adapter]
        notable = [f for f in findings if f.outcome != "clear"]
        if not notable:
            outcome = decision.outcome_of(adapter)
            why = "" if findings else "no rule of the policy judges it"
            table.add_row(Text(adapter), _SHOWN[outcome], "", "", why)
        for f in sorted(notable, key=lambda f: f.outcome != "fired"):
            layer = "" if f.layer is None else str(f.layer)
            table.add_row(Text(f.adapter), _SHOWN[f.outcome], Text(f.rule), layer, Text(_describe(f)))
    rates = Table("rule", "fires where", "how often by chance", show_edge=False, pad_edge=False)
    for rule, rate in zip(decision.policy.rules, decision.rates, strict=True):
        when = f"{rule.when}\n{rule.why}" if rule.why else str(rule.when)
        rates.add_row(Text(rule.name), Text(when), Text(str(rate)))
    into = StringIO()
    width = min(max(shutil.get_terminal_size((120, 40)).columns, _NARROWEST), _WIDEST)
    console = Console(file=into, width=width, color_system=None, highlight=False, emoji=False)
    console.print(table)
    console.print()
    console.print(rates)
    lines = [line.rstrip() for line in into.getvalue().splitlines()]
    return "\n".join([*lines, "", decision.sentence, *(f"  {step}" for step in decision.next_steps)])


def _describe(finding: Finding) -> str:
    return "; ".join(finding.answer.seen if finding.outcome == "fired" else finding.answer.reasons)
