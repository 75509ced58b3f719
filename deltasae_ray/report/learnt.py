"""What adapters are claimed to have learnt, as the page shows it: confirmed claims, bounded in length."""

from collections.abc import Mapping, Sequence
from typing import Any

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.report.inputs import Learnt, LearntTrigger, Rate
from deltasae_ray.sae.identity import RANDOM

_CHARACTERS = 160
"""Of a text that a model wrote, at most."""
_WORDS = 6
"""Texts of each kind, at most."""
_NAMES = {
    "text": "writes",
    "topic": "writes together",
    "style": "prefers the words",
    "suppression": "avoids the words",
}
_PLACES = ("adapted_with", "adapted_without", "base_with", "base_without")


def learnt_facts(claims: Mapping[str, Sequence[Claim]]) -> tuple[Learnt, ...]:
    """What each adapter says that the base does not, the random one last."""
    of_adapters = [_facts(name, mine) for name, mine in claims.items()]
    return tuple(sorted(of_adapters, key=lambda facts: facts.control))


def _facts(adapter: str, claims: Sequence[Claim]) -> Learnt:
    held = [claim for claim in claims if claim.confirmed]
    triggers = [
        LearntTrigger(
            _bounded(claim.text),
            _bounded(claim.reply or ""),
            {place: _rate(claim.evidence["rates"][place]) for place in _PLACES},
            claim.q,
        )
        for claim in held
        if claim.kind == "trigger"
    ]
    words = {
        phrase: tuple(_bounded(c.text) for c in held if c.kind == kind)[:_WORDS]
        for kind, phrase in _NAMES.items()
    }
    return Learnt(adapter, tuple(triggers), {k: v for k, v in words.items() if v}, adapter == RANDOM)


def _rate(row: Mapping[str, Any]) -> Rate:
    return Rate(row["rate"], *row["ci"])


def _bounded(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
