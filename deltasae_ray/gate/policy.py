"""A policy: rules that an adapter may break, which adapters are nulls, and what an undecided rule means."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from deltasae_ray import yaml_core
from deltasae_ray.errors import ConfigError
from deltasae_ray.gate.grammar import Condition, parse_condition

Undecided = Literal["stop", "fail"]
"""What an undecided rule means: stop exits with 3, fail with 1 as a broken rule does. Neither passes."""
MOST_RULES = 100
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_POLICY_KEYS, _RULE_KEYS = ("nulls", "undecided", "rules"), ("name", "when", "why", "layers", "adapters")


@dataclass(frozen=True)
class Rule:
    """What must not be so."""

    name: str
    when: Condition
    """The rule fires where this holds."""
    why: str = ""
    """What it means for the reader of a report, in a sentence."""
    layers: tuple[int, ...] = ()
    """Layers at which it is asked; empty: all of the study."""
    adapters: tuple[str, ...] = ("*",)
    """Names or patterns (`*`, `?`) of the adapters that it judges."""
    line: int = 1
    """Where it stands in the policy's file."""


@dataclass(frozen=True)
class Policy:
    """Rules, and how they are read."""

    rules: tuple[Rule, ...]
    nulls: tuple[str, ...] = ()
    """Names or patterns of the study's adapters that learnt nothing: rules are tried on them to tell how
    often they fire by chance, and they are not judged."""
    undecided: Undecided = "stop"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of these, or matches one of these patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def parse_policy(text: str, where: str) -> Policy:
    """Reads a policy from YAML.

    Args:
        where: what the file is called in errors.

    Raises:
        ConfigError: no YAML, an unknown key, a rule that cannot be read, two rules of one name.
    """
    loaded = yaml_core.load(text, where)
    if not isinstance(loaded, dict):
        raise ConfigError(f"{where} must hold a mapping with the keys {', '.join(_POLICY_KEYS)}")
    _check_keys(loaded, _POLICY_KEYS, where)
    given = loaded.get("rules")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{where}: rules must be a list with at least one rule (name, when)")
    if len(given) > MOST_RULES:
        raise ConfigError(f"{where} has {len(given)} rules; {MOST_RULES} is the most")
    rules = tuple(_rule(rule, text, f"{where}, rule {i}") for i, rule in enumerate(given, start=1))
    names = [rule.name for rule in rules]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{where}: two rules are called {twice[0]!r}; rename one")
    word = loaded.get("undecided", "stop")
    undecided = next((u for u in get_args(Undecided) if u == word), None)
    if undecided is None:
        raise ConfigError(f"{where}: undecided={word!r} must be stop (exit 3) or fail (exit 1)")
    return Policy(rules, _texts(loaded.get("nulls", []), f"{where}: nulls"), undecided)


def _rule(given: yaml_core.Value, text: str, where: str) -> Rule:
    if not isinstance(given, dict):
        raise ConfigError(f"{where} must be a mapping with name and when")
    _check_keys(given, _RULE_KEYS, where)
    name, when, why = given.get("name"), given.get("when"), given.get("why", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: name={name!r:.80} must be 1 to 64 letters, digits, dots, dashes or underscores"
        )
    if not isinstance(when, str):
        raise ConfigError(f"{where} ({name}): when must be a text such as missing_share.ci_low > 0.5")
    if not isinstance(why, str) or len(why) > 500:
        raise ConfigError(f"{where} ({name}): why must be a text of at most 500 characters")
    layers = _texts(given.get("layers", []), f"{where} ({name}): layers")
    if wrong := [layer for layer in layers if not re.fullmatch(r"\d{1,4}", layer, re.ASCII)]:
        raise ConfigError(f"{where} ({name}): layers: {wrong[0]!r:.40} is no number of a block, from 0 up")
    adapters = _texts(given.get("adapters", ["*"]), f"{where} ({name}): adapters")
    if not adapters:
        raise ConfigError(f"{where} ({name}): adapters is empty; leave it out to judge all")
    return Rule(
        name,
        parse_condition(when, f"{where} ({name})"),
        why,
        tuple(int(layer) for layer in layers),
        adapters,
        _line(name, text),
    )


def _texts(given: yaml_core.Value, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(item, str) and item for item in given):
        raise ConfigError(f"{where} must be a list, such as [a, b]")
    return tuple(str(item) for item in given)


def _check_keys(given: dict, known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            meant = f": did you mean {near[0]}?" if near else ":"
            raise ConfigError(f"{where}: there is no key {key!r:.60}{meant} The keys are {', '.join(known)}")


def _line(name: str, text: str) -> int:
    """The line on which a rule's name stands; 1 where it is written in a way that is not looked for."""
    pattern = re.compile(rf"\bname['\"]?\s*:\s*['\"]?{re.escape(name)}(?![\w.-])")
    match = pattern.search(text)
    return text.count("\n", 0, match.start(0)) + 1 if match else 1
