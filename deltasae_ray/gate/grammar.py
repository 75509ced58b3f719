"""The grammar of a rule: comparisons of figures with numbers, joined by `and` and `or`. Nothing is
evaluated as Python."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from deltasae_ray.errors import ConfigError
from deltasae_ray.gate.names import FigurePart, figure_part

Operator = Literal[">", ">=", "<", "<="]
_OPERATORS: tuple[Operator, ...] = (">=", "<=", ">", "<")
LONGEST, DEEPEST = 1_000, 20
"""Characters of a rule, and parentheses that are open at once."""
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))"
    r"|(?P<name>[A-Za-z_][\w.-]*)"
    r"|(?P<sign>>=|<=|>|<|\(|\)))"
)


@dataclass(frozen=True)
class Comparison:
    """A part of a figure against a limit."""

    figure: FigurePart
    operator: Operator
    limit: float

    def __str__(self) -> str:
        return f"{self.figure} {self.operator} {self.limit:g}"


@dataclass(frozen=True)
class Junction:
    """Conditions of which all, or any, must hold."""

    word: Literal["and", "or"]
    parts: tuple["Condition", ...]

    def __str__(self) -> str:
        return f" {self.word} ".join(f"({p})" if isinstance(p, Junction) else str(p) for p in self.parts)


Condition = Comparison | Junction


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """Every comparison of a condition, from left to right."""
    if isinstance(condition, Comparison):
        yield condition
    else:
        for part in condition.parts:
            yield from comparisons(part)


def parse_condition(text: str, where: str) -> Condition:
    """Reads a condition such as `missing_share.ci_low > .5 and (p_share < .1 or density > 3)`; `and` binds
    closer than `or`.

    Args:
        where: what the rule is called in errors.

    Raises:
        ConfigError: the text is no condition; the place is named, with what was expected there.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"{where} is {len(text):,} characters long; a rule has at most {LONGEST:,}")
    reading = _Reading(list(_tokens(text, where)), text, where)
    condition = reading.any_of(0)
    if (left := reading.next()) is not None:
        raise reading.expected("`and`, `or` or the end of the rule", left)
    return condition


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(text: str, where: str) -> Iterator[_Token]:
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise ConfigError(
                f"{where}: {text[at : at + 12]!r} at character {at + 1} is not part of a rule. Write figure,"
                " operator (>, >=, <, <=) and number, such as missing_share.ci_low > 0.5, joined by and, or"
            )
        kind = str(match.lastgroup)
        yield _Token(kind, match[kind], match.start(kind))
        at = match.end()


class _Reading:
    """Takes the tokens one by one."""

    def __init__(self, tokens: list[_Token], text: str, where: str) -> None:
        self._tokens, self._text, self._where, self._at = tokens, text, where, 0

    def next(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def expected(self, what: str, token: _Token | None) -> ConfigError:
        there = "the rule ends" if token is None else f"{token.text!r} stands at character {token.at + 1}"
        return ConfigError(f"{self._where}: {what} is expected where {there}, in {self._text!r}")

    def _take(self) -> _Token | None:
        token = self.next()
        self._at += 1
        return token

    def any_of(self, depth: int) -> Condition:
        return self._joined("or", depth)

    def _joined(self, word: Literal["and", "or"], depth: int) -> Condition:
        parts = [self._joined("and", depth) if word == "or" else self._one(depth)]
        while (token := self.next()) is not None and token.text == word:
            self._take()
            parts.append(self._joined("and", depth) if word == "or" else self._one(depth))
        return parts[0] if len(parts) == 1 else Junction(word, tuple(parts))

    def _one(self, depth: int) -> Condition:
        token = self._take()
        if token is not None and token.text == "(":
            if depth >= DEEPEST:
                raise ConfigError(f"{self._where}: more than {DEEPEST} parentheses are open at once")
            inner = self.any_of(depth + 1)
            if (closing := self._take()) is None or closing.text != ")":
                raise self.expected("`)`", closing)
            return inner
        if token is None or token.kind != "name" or token.text in ("and", "or"):
            raise self.expected("the name of a figure", token)
        sign = self._take()
        operator: Operator | None = next((o for o in _OPERATORS if sign is not None and sign.text == o), None)
        if operator is None:
            raise self.expected(f"one of {', '.join(_OPERATORS)}", sign)
        number = self._take()
        if number is None or number.kind != "number":
            raise self.expected("a number", number)
        limit = float(number.text)
        if abs(limit) > 1e15:
            raise ConfigError(f"{self._where}: {number.text} is beyond any figure's range")
        return Comparison(figure_part(token.text, self._where), operator, limit)
