"""A decision as SARIF 2.1.0 (OASIS standard, errata 01), which code scanning services open."""

import hashlib
import importlib.metadata
from typing import Any
from urllib.parse import quote

from deltasae_ray.gate.decision import Decision
from deltasae_ray.gate.evaluate import Finding
from deltasae_ray.gate.policy import Rule

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"fired": "error", "undecided": "warning"}


def sarif(decision: Decision) -> dict[str, Any]:
    """One run: a rule of the policy is a rule, a finding that did not come out clear is a result.

    A result lies at the rule's line in the policy's file; the adapter and layer are logical locations.
    """
    order = {rule.name: i for i, rule in enumerate(decision.policy.rules)}
    rates = {rate.rule: str(rate) for rate in decision.rates}
    driver = {
        "name": "deltasae_ray gate",
        "version": importlib.metadata.version("deltasae-ray"),
        "rules": [_rule(rule, rates[rule.name]) for rule in decision.policy.rules],
    }
    results = [_result(f, order[f.rule], decision) for f in decision.findings if f.outcome in _LEVELS]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True, "exitCode": decision.exit_code}],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule, rate: str) -> dict[str, Any]:
    return {
        "id": rule.name,
        "shortDescription": {"text": f"fires where {rule.when}"},
        "fullDescription": {"text": rule.why or f"fires where {rule.when}"},
        "help": {"text": rate},
        "defaultConfiguration": {"level": "error"},
    }


def _result(finding: Finding, index: int, decision: Decision) -> dict[str, Any]:
    rule = decision.policy.rules[index]
    place = finding.adapter if finding.layer is None else f"{finding.adapter}/layer {finding.layer}"
    return {
        "ruleId": rule.name,
        "ruleIndex": index,
        "level": _LEVELS[finding.outcome],
        "message": {"text": message(finding, rule)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(decision.policy_file)},
                    "region": {"startLine": rule.line},
                },
                "logicalLocations": [{"fullyQualifiedName": place, "kind": "module"}],
            }
        ],
        "partialFingerprints": {"finding/v1": hashlib.sha256(f"{rule.name}\n{place}".encode()).hexdigest()},
    }


def message(finding: Finding, rule: Rule) -> str:
    """What is wrong with an adapter, in a sentence or two."""
    at = "" if finding.layer is None else f", layer {finding.layer}"
    seen = "; ".join(finding.answer.seen) or "nothing was measured"
    if finding.outcome == "fired":
        return f"{finding.adapter}{at}: {rule.name} fires ({rule.when}): {seen}. {rule.why}".strip()
    reasons = "; ".join(finding.answer.reasons)
    return f"{finding.adapter}{at}: {rule.name} cannot be decided ({rule.when}): {reasons}".strip()
