"""The table that a study prints at its end."""

from collections.abc import Sequence

from deltasae_ray.analyses.table import DivergenceRow, leaf_figures
from deltasae_ray.analyses.verdict import Answer, LeafFigures, Verdict
from deltasae_ray.metrics.against_chance import standing_of
from deltasae_ray.metrics.catalogue import metric as catalogued
from deltasae_ray.metrics.measure import Measure

_MARKS = {"at chance": " at chance", "not to be told from chance": " unclear", "worse than chance": " worse"}

_LONGEST = 110
"""Characters of a line of a verdict."""


def printed_table(rows: Sequence[DivergenceRow], reference: str, k: int) -> list[str]:
    """Every adapter's largest dictionaries, layer by layer: figures over all seeds where there are several,
    as the verdict reads them.

    Args:
        reference: what the dictionaries are held against, in words.
        k: atoms of the missing share.
    """
    sizes: dict[str, int] = {}
    for r in rows:
        sizes[r.adapter] = max(r.d_sae, sizes.get(r.adapter, 0))
    seeds = len({r.seed for r in rows if r.name == "missing_share"})
    heads = {
        "adapter": 9,
        "layer": 7,
        "not visible f": 20,
        f"missing share M({k})": 22,
        "monitor R2 (null)": 26,
        "max-cosine by energy (null, p)": 50,
    }
    several_k, several_kinds = (len({getattr(r, of) for r in rows}) > 1 for of in ("k", "architecture"))
    text = (
        "one seed: what another training would give is not known"
        if seeds == 1
        else f"means over {seeds} seeds"
    )
    lines = [
        f"Held against the {reference}; d_sae {', '.join(map(str, sorted(set(sizes.values()))))}; {text}",
        "  " + "".join(f"{head:<{width - 1}} " for head, width in heads.items()) + "FVU delta / PCA / random",
    ]
    for adapter, largest in sizes.items():
        for leaf in sorted(leaf_figures(rows, adapter), key=lambda leaf: leaf.layer):
            if leaf.d_sae == largest and leaf.seed == 0:
                share = _brief(leaf.over_seeds("missing_share"))
                cells = [
                    adapter,
                    str(leaf.layer),
                    _brief(leaf.get("not_visible_share")),
                    share,
                    _beside(leaf, "monitor_r2"),
                    _beside(leaf, "max_cosine_weighted", sure=True),
                ]
                which = (f"  k {leaf.k}" if several_k else "") + (
                    f"  {leaf.architecture}" if several_kinds else ""
                )
                fvus = " / ".join(_short(leaf, m) for m in ("fvu_delta", "fvu_pca", "fvu_random_atoms"))
                row = "".join(
                    f"{cell:<{width - 1}} " for cell, width in zip(cells, heads.values(), strict=True)
                )
                lines.append("  " + row + fvus + which)
    return lines


def printed_verdict(v: Verdict) -> list[str]:
    """Four short lines: the label, and an answer to each of three questions; the page has them in full."""
    return [v.head, *(f"  {_cut(f'{a.question} {_leading(a)}')}" for a in v.answers[:3])]


def _leading(answer: Answer) -> str:
    """The missing share where the answer has it, else its first sentence."""
    shares = (s for s in answer.sentences if s.startswith("Missing share"))
    return next(shares, answer.sentences[0])


def _cut(line: str) -> str:
    if len(line) <= _LONGEST:
        return line
    return f"{line[:_LONGEST].rsplit(' ', 1)[0].rstrip(',;')} …"


def _brief(m: Measure) -> str:
    return f"{m:.2f}" if m.value is not None else "undefined"


def _short(leaf: LeafFigures, metric: str) -> str:
    value = leaf.over_seeds(metric).value
    return "–" if value is None else f"{value:.2f}"


def _beside(leaf: LeafFigures, metric: str, *, sure: bool = False) -> str:
    """A figure with its null, and `sure` with its interval and p."""
    m = leaf.over_seeds(metric)
    if m.value is None:
        return "undefined"
    mark = _MARKS.get(standing_of(catalogued(metric), m) or "", "")
    p = f", p {m.p:.2g}" if sure and m.p is not None else ""
    null = "" if m.null is None else f" ({m.null:.3f}{p}{mark})"
    return (f"{m:.3f}" if sure else f"{m.value:.3f}") + null
