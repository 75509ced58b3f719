"""What adapters are claimed to have learnt, as the page shows it: confirmed claims, bounded in length."""

from collections.abc import Mapping, Sequence
from typing import Any

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.harvest.random_draws import RANDOM
from deltasae_ray.report.inputs import Learnt, LearntTrigger

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
_PLACES = {
    "adapted_with": "adapted, with it",
    "adapted_without": "adapted, without it",
    "base_with": "base, with it",
    "base_without": "base, without it",
}


def learnt_facts(claims: Mapping[str, Sequence[Claim]]) -> tuple[Learnt, ...]:
    """Of every adapter, the random one last."""
    made = [_facts(name, mine) for name, mine in claims.items()]
    return tuple(sorted(made, key=lambda facts: facts.control))


def _facts(adapter: str, claims: Sequence[Claim]) -> Learnt:
    held = [claim for claim in claims if claim.confirmed]
    triggers = [
        LearntTrigger(
            _bounded(claim.text),
            _bounded(claim.reply or ""),
            {told: _rate(claim.evidence["rates"][name]) for name, told in _PLACES.items()},
            claim.q,
        )
        for claim in held
        if claim.kind == "trigger"
    ]
    words = {
        told: tuple(_bounded(c.text) for c in held if c.kind == kind)[:_WORDS]
        for kind, told in _NAMES.items()
    }
    return Learnt(adapter, tuple(triggers), {k: v for k, v in words.items() if v}, adapter == RANDOM)


def _rate(row: Mapping[str, Any]) -> str:
    low, high = row["ci"]
    return f"{row['rate']:.0%} [{low:.0%}, {high:.0%}]"


def _bounded(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
