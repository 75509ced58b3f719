"""The headline table: how many latents of every dictionary are not visible, its missing share and, right
under it, what a deployed monitor sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.notes import against_null, kappa_notes
from deltasae_ray.report.seeds import ONE_SEED, leading_rows
from deltasae_ray.report.wording import describe, figure, interval
from deltasae_ray.sae.identity import DictionaryId

HEAD = "missing_share"
SEEN = "not_visible_share"
"""Stands first, of the first seed: all seeds have decided which latents repeat."""


@dataclass(frozen=True)
class Line:
    """One line of the table, as it is written."""

    label: str
    value: str
    interval: str
    null: str
    ceiling: str
    kappa: str
    kappa_interval: str
    """Empty where it has none."""
    words: str
    chance: bool


@dataclass(frozen=True)
class Pair:
    """One dictionary."""

    adapter: str
    layer: int
    size: str
    new_adapter: bool
    """True where the line above is of another adapter."""
    lines: tuple[Line, ...]


def headline(inputs: ReportInputs) -> list[Pair]:
    """In the order of the rows; where there is a mean over seeds it leads, and each seed alone stands
    below."""
    beside: dict[DictionaryId, dict[str, DivergenceRow]] = {}
    for r in inputs.rows:
        beside.setdefault(r.identity, {})[r.name] = r
    heads = [r for r in inputs.rows if r.name == HEAD]
    means = {r.cell: r for r in inputs.rows if r.figure == HEAD and r.over_seeds}
    several_seeds, several_k = len({r.seed for r in heads}) > 1, len({r.k for r in heads}) > 1
    pairs: list[Pair] = []

    def add(r: DivergenceRow, seed: str, *rows: tuple[DivergenceRow, str]) -> None:
        size = ("–" if r.d_sae is None else f"{r.d_sae:,}") + (f", k {r.k}" if several_k else "") + seed
        lines = tuple(_line(row, inputs, extra) for row, extra in rows)
        pairs.append(Pair(r.adapter, r.layer, size, not pairs or pairs[-1].adapter != r.adapter, lines))

    for r in heads:
        own, found = f", seed {r.seed}" if several_seeds else "", beside[r.identity]
        seen = ((found[SEEN], _beside_random(found)),) if SEEN in found else ()
        monitor = ((found["monitor_r2"], ""),) if "monitor_r2" in found else ()
        if r.cell not in means:
            add(r, own, *seen, (r, ""), *monitor)
            continue
        seeds = [h for h in heads if h.cell == r.cell]
        if r is seeds[0]:
            add(r, f", {len(seeds)} seeds", *seen, (means[r.cell], ""), *monitor)
            alone = [replace(_line(h, inputs, ""), label=f"seed {h.seed} alone") for h in seeds]
            pairs[-1] = replace(pairs[-1], lines=(*pairs[-1].lines, *alone))
    return pairs


def _beside_random(found: Mapping[str, DivergenceRow]) -> str:
    """The same of random adapters of the same strength."""
    random = found.get(f"{SEEN}_random_adapter")
    if random is None:
        return "no random adapter beside it"
    if random.value is None:
        return f"random adapters: undefined ({random.reason})"
    return f"random adapters {figure(random.value)} {interval(random.ci_low, random.ci_high)}"


def headline_notes(inputs: ReportInputs) -> list[str]:
    """What "at chance" means for the metrics of this table, and why it lacks what it lacks: said once under
    it."""
    notes = []
    for metric in (HEAD, "monitor_r2"):
        found = [
            r for r in leading_rows(inputs.rows, (metric,)) if against_null(r) not in (None, "beyond chance")
        ]
        if found:
            words = describe(metric, inputs)
            notes.append(f"{words.label} at chance: {words.at_chance}.")
    heads = [r for r in inputs.rows if r.name == HEAD]
    if len({r.seed for r in heads}) == 1:
        notes.append(ONE_SEED)
    notes += kappa_notes([r for r in inputs.rows if r.figure == HEAD])
    known = [r for r in heads if r.value is not None]
    if known and all(r.ceiling is None for r in known):
        notes.append(
            "No ceiling, and so no κ, stands beside M: it takes a second delta dictionary of the same recipe"
            " (fit.seeds=2)."
        )
    return notes


def _line(row: DivergenceRow, inputs: ReportInputs, extra: str) -> Line:
    found = against_null(row)
    if row.value is None:
        said = row.reason
    elif found is None:
        said = f"cannot be told from chance: {row.reason or 'no interval'}"
    elif found == "beyond chance":
        said = "below its null" if row.value < (row.null or 0.0) else "above its null"
    else:
        said = found
    return Line(
        label=describe(row.name, inputs).label,
        value="undefined" if row.value is None else figure(row.value),
        interval=interval(row.ci_low, row.ci_high),
        null=figure(row.null),
        ceiling=figure(row.ceiling),
        kappa=figure(row.kappa),
        kappa_interval="" if row.kappa_low is None else interval(row.kappa_low, row.kappa_high),
        words="; ".join(filter(None, (said, extra))),
        chance=found not in (None, "beyond chance"),
    )
