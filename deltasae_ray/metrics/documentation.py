"""docs/metrics.md, written from the catalogue: `python -m deltasae_ray.metrics.documentation
docs/metrics.md`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from deltasae_ray.metrics.catalogue import SECTIONS, VARIANTS, VARIED, Metric

_HEAD = """# Metrics

Written by `make docs` from `deltasae_ray/metrics/catalogue/`; a test holds the two together. Every figure of a study is one of these,
in `divergence.parquet`, in MLflow and on the report's page, as `{value, null, ceiling, ci, p, kappa, n, reason, kappa_ci}`.

- **value** is never NaN: what has no meaning is undefined, and `reason` says why.
- **null** is the same figure where there is nothing to find, **ceiling** the best that could be expected, and
  **kappa** = (value − null) / (ceiling − null), undefined where the ceiling is not 5 standard errors better than the null.
- **ci** is a 95 % interval: over evaluation documents (bootstrap; CKA, effective latents and what is made of covariances by a jackknife),
  over latents for matching. Under 30 documents there is none, and what one dictionary is by itself has none.
- **kappa_ci** is the 95 % interval of kappa, from resamples in which value, null and ceiling move together: of documents, or of latents for
  matching, with the null's draws as variance. κ is not compared where ceilings differ by more than .1.
- **lacks** (a column of the table) says of every null, ceiling, kappa and p that is missing why it is; here a dash says so.
- **p** is one-sided in the direction of *tail*, and adjusted over layers and adapters (Benjamini-Hochberg, which allows positive
  dependence).

δ is the change of the residual stream at a layer, h_b and h_a the base and the adapted activations, Σ_δ and Σ_h covariances, μ the mean
change, Δ the dictionary trained on deltas, G the reference. OMP is orthogonal matching pursuit with atoms of either sign.
"""


_NAMES = """The columns `variant` and `over_seeds` of the table say how a figure was taken. Where a figure has one name only (MLflow, stored
measures, the page) it ends with both:
"""

_VARIED = f"""`_token_mean`, `_no_top3` and both are measured of {", ".join(f"`{name}`" for name in VARIED)},
each with null, interval and p of its own. The others have them not: controls are read beside the plain M; an encoder was trained on the
energy of all coordinates; norms, spectra and shares of the largest coordinates or tokens would be 1 or 0 by construction; matching and
subspaces of decoders see no tokens."""


def metrics_page() -> str:
    """The whole page, in Markdown."""
    parts = [
        _HEAD,
        _NAMES,
        *(f"- `…{ending}`: {note}." for ending, note in VARIANTS.items()),
        "",
        _VARIED,
        "",
    ]
    for title, metrics in SECTIONS.items():
        parts += [f"## {title}", "", _table(metrics), ""]
    return "\n".join(parts)


def _table(metrics: Sequence[Metric]) -> str:
    rows = [
        "| metric | what | formula | null | ceiling | κ | p, tail | unit | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for m in metrics:
        null, ceiling = m.null or _none(m.no_null), m.ceiling or _none(m.no_ceiling)
        kappa = _none(m.no_kappa) if m.no_kappa else "yes" if m.null and m.ceiling else "–"
        tail = _none(m.no_p) if m.no_p else m.tail or "–"
        cells = (f"`{m.name}`", m.title, m.formula, null, ceiling, kappa, tail, m.unit, m.source)
        rows.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(rows)


def _none(why: str) -> str:
    return f"– ({why})"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(metrics_page())
