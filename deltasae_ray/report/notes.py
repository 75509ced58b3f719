"""Plain sentences on rows: how they stand to their nulls, where κ must not be compared, and which places are
meant."""

from collections.abc import Callable, Mapping, Sequence

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.metrics.against_chance import CHANCE_MARGIN, Standing, standing_of
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import comparable
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.wording import catalogued, describe, figure, numbered

CHANCE: dict[Standing, str] = {
    "at chance": (
        f"the interval includes the null (of a max-cosine: ends within {CHANCE_MARGIN} of it), or p is"
        " above .05"
    ),
    "not to be told from chance": (
        "the interval is apart from the null, but p, which knows the null's own error, is above .05, or, of"
        f" a max-cosine, it reaches into {CHANCE_MARGIN} around the null"
    ),
    "worse than chance": (
        "the whole interval is on the other side of the null, where less is found than where there is nothing"
        " to find"
    ),
}
"""Standings in which nothing is found, and what each means."""
UNDEFINED = "Undefined"
"""How a note on what is undefined begins."""


def standing_words(name: str, m: Measure) -> str:
    """How a figure stands to its null: "below its null", "at chance"; empty where nothing tells."""
    standing = standing_of(catalogued(name), m)
    if standing != "beyond chance":
        return standing or ""
    return "below its null" if (m.value or 0.0) < (m.null or 0.0) else "above its null"


def against_null(row: DivergenceRow) -> Standing | None:
    """How a row stands to its null, by the rule of the verdict; None where nothing tells."""
    return standing_of(catalogued(row.name), row.measure)


def chance_notes(
    rows: Sequence[DivergenceRow],
    inputs: ReportInputs,
    metric: str,
    over: Mapping[DivergenceRow, int] | None = None,
) -> list[str]:
    """Plain sentences on the rows of one figure: which are at chance, which cannot be told from it, which are
    undefined.

    Args:
        over: place of each row on a figure's x axis, where that is k and not the layer.
    """
    if not rows:
        return []
    notes = []
    for standing, means in CHANCE.items():
        chance = [r for r in rows if against_null(r) == standing]
        if chance:
            where = (
                "everywhere"
                if len(chance) == len(rows)
                else f"in {len(chance)} of {len(rows)} cells ({places(chance, over)})"
            )
            notes.append(
                f"{standing[0].upper()}{standing[1:]} {where}: {means}. There,"
                f" {describe(metric, inputs).at_chance}."
            )
    untold = [r for r in rows if r.value is not None and against_null(r) is None]
    if untold:
        why = "it has no null here" if all(r.null is None for r in untold) else "it has no interval"
        notes.append(
            f"Cannot be told from chance in {len(untold)} of {len(rows)} cells ({places(untold, over)}):"
            f" {why}."
        )
    undefined = [r for r in rows if r.value is None]
    for reason in dict.fromkeys(r.reason for r in undefined):
        notes.append(
            f"{UNDEFINED} for {places([r for r in undefined if r.reason == reason], over)}: {reason}."
        )
    return notes or [f"Every cell is beyond chance: each of the {len(rows)} can be told from its null."]


def kappa_notes(rows: Sequence[DivergenceRow]) -> list[str]:
    """A sentence where κ stands on ladders of different height, so that its values in these rows must not be
    compared."""
    grouped = _grouped(
        [r for r in rows if r.kappa is not None and r.ceiling is not None], lambda r: (r.figure,)
    )
    apart = {}
    for (name,), inside in grouped.items():
        ceilings = [r.ceiling for r in inside if r.ceiling is not None]
        if not comparable(ceilings, 90.0 if catalogued(name).unit == "degrees" else 1.0):
            apart[name] = f"{name.replace('_', ' ')} ({figure(min(ceilings))} to {figure(max(ceilings))})"
    if not apart:
        return []
    listed = ", ".join(apart.values())
    return [
        "κ is not to be compared where ceilings differ by more than a tenth of the scale, as they do between"
        f" rows of {listed}."
    ]


def places(rows: Sequence[DivergenceRow], over: Mapping[DivergenceRow, int] | None = None) -> str:
    """Where, as shortly as it stays clear: "r4 layers 9, 12; r16 layer 9 (d_sae 256)", "r4 layers 9, 12 at k
    = 1"."""
    layers: dict[tuple[str, str], list[int]] = {}
    for (adapter, layer), inside in _grouped(rows, lambda r: (r.adapter, r.layer)).items():
        if over is None:
            for size in dict.fromkeys(r.d_sae for r in inside):
                layers.setdefault((adapter, str(size)), []).append(layer)
        else:
            at = ", ".join(str(k) for k in sorted({over[r] for r in inside}))
            layers.setdefault((adapter, f" at k = {at}"), []).append(layer)
    if over is not None:
        return "; ".join(
            f"{adapter} {numbered('layer', layers_of)}{at}" for (adapter, at), layers_of in layers.items()
        )
    sizes = {size for _, size in layers}
    alike: dict[tuple[str, str], list[str]] = {}
    for (adapter, size), layers_of in layers.items():
        alike.setdefault((adapter, numbered("layer", layers_of)), []).append(size)
    return "; ".join(
        f"{who} {where}" + (f" (d_sae {', '.join(of)})" if len(of) < len(sizes) else "")
        for (who, where), of in alike.items()
    )


def _grouped(
    rows: Sequence[DivergenceRow], key: Callable[[DivergenceRow], tuple]
) -> dict[tuple, list[DivergenceRow]]:
    groups: dict[tuple, list[DivergenceRow]] = {}
    for r in rows:
        groups.setdefault(key(r), []).append(r)
    return groups
