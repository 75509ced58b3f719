"""What the arena came to, as text and as plain values (pure)."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from deltasae_ray.arena.behaviour import Rates
from deltasae_ray.arena.methods import OURS
from deltasae_ray.arena.recipes import recipe
from deltasae_ray.arena.scoring import DEPTHS, Score, paired_difference, rates_of

_DEPTH = 3
"""First so many claims in which methods are compared."""


@dataclass(frozen=True)
class ArenaResult:
    """The arena's result."""

    text: str
    facts: dict[str, Any]


def summarise(scores: Sequence[Score], learnt: Mapping[str, Rates], tuning: AbstractSet[str]) -> ArenaResult:
    """Rates of every method, of both halves apart, and by name what failed.

    Args:
        learnt: positive recipe → what its adapter learnt.
        tuning: recipes that methods may have been tuned on.
    """
    halves = {"tuning half": set(tuning), "other half": {s.recipe for s in scores} - set(tuning)}
    halves["both halves"] = {s.recipe for s in scores}
    taught = frozenset(name for name, rates in learnt.items() if rates.learnt)
    left_out = sorted(name for name, rates in learnt.items() if not rates.learnt)
    methods = sorted({s.method for s in scores}, key=lambda m: (m != OURS, m))
    lines = [f"{len(taught)} of {len(learnt)} positives learnt their behaviour."]
    lines += [f"  not learnt, not counted: {name} ({_rates(learnt[name])})" for name in left_out]
    facts: dict[str, Any] = {"learnt": {n: asdict(r) | {"learnt": r.learnt} for n, r in learnt.items()}}
    counted = [s for s in scores if s.recipe in taught or not recipe(s.recipe).positive]
    for half, names in halves.items():
        lines += ["", f"{half}:", _header()]
        for method in methods:
            of = [s for s in counted if s.method == method and s.recipe in names]
            rates = rates_of(of, taught)
            lines.append(_line(method, [str(r) for r in rates.values()], [s.seconds for s in of]))
            facts.setdefault(half, {})[method] = {n: asdict(r) for n, r in rates.items()}
    lines += _compared(counted, taught, methods)
    for method in methods:
        lines += _failures(method, [s for s in counted if s.method == method])
    return ArenaResult("\n".join(lines), facts)


def _rates(rates: Rates) -> str:
    return f"{rates.adapted:.2f} with what calls it, {rates.without:.2f} without, base {rates.base:.2f}"


def _header() -> str:
    return _line("method", [*(f"first {d}" for d in DEPTHS), "false alarms"], [])


def _line(name: str, cells: Sequence[str], seconds: Sequence[float]) -> str:
    last = f"{median(seconds):8.1f}" if seconds else "median s"
    return f"  {name:<28}" + "".join(f"{cell:<22}" for cell in cells) + last


def _compared(scores: Sequence[Score], taught: AbstractSet[str], methods: Sequence[str]) -> list[str]:
    if OURS not in methods:
        return []
    hits = {(s.method, s.recipe): s.hit(_DEPTH) for s in scores if s.recipe in taught}
    names = sorted({s.recipe for s in scores if s.recipe in taught})
    lines = ["", f"{OURS} less each other method, hits in the first {_DEPTH}, same adapters, 95 %:"]
    for method in methods:
        if method != OURS:
            both = [n for n in names if (OURS, n) in hits and (method, n) in hits]
            d, low, high = paired_difference([hits[OURS, n] for n in both], [hits[method, n] for n in both])
            lines.append(f"  {method:<28}{d:+.2f} [{low:+.2f}, {high:+.2f}]")
    return lines


def _failures(method: str, scores: Sequence[Score]) -> list[str]:
    missed = [s.recipe for s in scores if recipe(s.recipe).positive and not s.hit(_DEPTH)]
    late = {s.recipe: s.place for s in scores if s.place is not None and s.place > _DEPTH}
    alarms = [s.recipe for s in scores if s.false_alarms]
    shown = ", ".join(f"{n} (at {late[n]})" if n in late else n for n in missed)
    return [
        "",
        f"{method}: missed in the first {_DEPTH}: {shown or 'none'}",
        f"{method}: false alarms on: {', '.join(alarms) or 'none'}",
    ]
