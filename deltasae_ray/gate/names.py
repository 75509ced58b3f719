"""Names of figures as policies write them, held against the catalogue of metrics."""

import difflib
import re
from dataclasses import dataclass
from typing import Literal, get_args

from deltasae_ray.errors import ConfigError
from deltasae_ray.metrics.catalogue import BETWEEN, METRICS, SEEDS, VARIANTS, VARIED, metric, parse_name

Part = Literal["value", "null", "ceiling", "ci_low", "ci_high", "p", "kappa", "kappa_low", "kappa_high", "n"]
"""A column of the table that a rule can name."""
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class FigurePart:
    """A figure, and which of its numbers is meant."""

    name: str
    """Name in the table, with its variant; over seeds where there are several."""
    part: Part = "value"

    def __str__(self) -> str:
        return self.name if self.part == "value" else f"{self.name}.{self.part}"


def figure_part(text: str, where: str) -> FigurePart:
    """Takes `name` or `name.part` apart.

    Raises:
        ConfigError: the catalogue has no such figure, or a figure no such part; names that are near are
            given.
    """
    name, dot, last = text.rpartition(".")
    if dot and last in PARTS and name:
        part: Part = next(p for p in PARTS if p == last)
    else:
        name, part = text, "value"
    if parse_name(name).over_seeds and _known(name):
        raise ConfigError(
            f"{where}: leave the ending {SEEDS} of {name} out: figures over seeds are read where a study has"
            " several seeds"
        )
    if _known(name):
        if parse_name(name).metric in BETWEEN:
            raise ConfigError(f"{where}: {name} is of two adapters, and a rule judges one at a time")
        return FigurePart(name, part)
    stem = name.rpartition(".")[0]
    if stem and _known(stem):
        wrong = name.rpartition(".")[2]
        near = difflib.get_close_matches(wrong, PARTS, 1, 0.4) or ["ci_low"]
        raise ConfigError(
            f"{where}: {stem} has no part {wrong!r}: did you mean {stem}.{near[0]}? The parts are"
            f" {', '.join(PARTS)}"
        )
    raise ConfigError(
        f"{where}: there is no figure {name!r}: did you mean {_nearest(name)}? docs/metrics.md lists all"
    )


def _known(name: str) -> bool:
    """Whether the catalogue has a figure of this name; a `{k}` or `{name}` must be filled in."""
    parsed = parse_name(name)
    try:
        entry = metric(name)
    except KeyError:
        return False
    return not parsed.variant or entry.name in VARIED


def _nearest(name: str) -> str:
    """Up to three names that are spelt most like one that does not exist; at least one."""
    endings = [ending for ending in VARIANTS if ending != SEEDS]
    known = [*METRICS, *(f"{varied}{ending}" for varied in VARIED for ending in endings)]
    filled = {re.sub(r"\{k\}", "16", entry).replace("{name}", "NAME"): entry for entry in known}
    near = difflib.get_close_matches(name[:80], filled, 3, 0.5)
    return " or ".join(near or sorted(filled, key=lambda k: -_likeness(name[:80], k))[:1])


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
