"""The one table of all metrics: what each is, what it is held against, and where it comes from. The documentation is made from it.

A metric is entered in the file of its section; `SECTIONS` has them in the order of the documentation.
"""

import re

from deltasae_ray.metrics.catalogue.audit import AUDIT
from deltasae_ray.metrics.catalogue.description import AS_PUBLISHED, CHANGE, DICTIONARY
from deltasae_ray.metrics.catalogue.entry import Metric as Metric
from deltasae_ray.metrics.catalogue.geometry import MATCHING, SIMILARITY, SUBSPACES
from deltasae_ray.metrics.catalogue.patched import LOSS
from deltasae_ray.metrics.catalogue.sight import MEAN_CHANGE, RECONSTRUCTION, SIGHT

SEEDS = "_seeds"
"""Ending of a figure over all seeds of a dictionary (`divergence.seeds`)."""

VARIANTS = {
    SEEDS: "mean over the seeds of the dictionary; the interval holds the variance between seeds",
    "_token_mean": "mean over tokens instead of over energy: every token's change has norm 1",
    "_no_top3": "without the three coordinates of largest variance",
}
"""Endings that a name may carry, in this order from the right; the metric is otherwise the same."""

VARIED = ("missing_share", "missing_share_base_control", "missing_share_over_base", "structure_delta", "structure_reference",
          "fvu_delta", "fvu_reference", "fvu_pca", "fvu_random_atoms",
          "gain_over_pca", "gain_over_random_atoms", "monitor_r2", "mean_share", "mean_missing_share")  # fmt: skip
"""Metrics that are also measured with `_token_mean`, `_no_top3` and both."""

SECTIONS: dict[str, tuple[Metric, ...]] = {
    "What a dictionary can see": SIGHT,
    "Reconstruction": RECONSTRUCTION,
    "The mean change": MEAN_CHANGE,
    "Matching": MATCHING,
    "Subspaces": SUBSPACES,
    "Similarity of representations": SIMILARITY,
    "What the change does to the loss, patched into the base model": LOSS,
    "What the audit of single latents comes to": AUDIT,
    "As published, for comparison": AS_PUBLISHED,
    "What the change is like": CHANGE,
    "The dictionary itself": DICTIONARY,
}
"""All metrics, in the order and under the headings of the documentation."""

PATCHED = ("loss_recovered", "loss_reached")
"""How the names of figures begin that come from patching deltas into the base model."""

AUDITED = "latent_"
"""How the names of figures begin that come from the audit of single latents."""

BETWEEN = "_adapters"
"""How the names of figures between two adapters end."""

METRICS = {m.name: m for section in SECTIONS.values() for m in section}
"""By name, `{k}` included."""


def metric(name: str) -> Metric:
    """The entry of a metric as it is named in the tables: `angle_pca_k16`, `missing_share_no_top3_token_mean`.

    Raises:
        KeyError: no metric has this name.
    """
    plain, _ = split_variant(name)
    if plain in METRICS:
        return METRICS[plain]
    return METRICS[re.sub(r"\d+$", "{k}", plain)]


def scale(name: str) -> float:
    """How far apart two values of a metric can be, for "within a tenth of the scale": 90 degrees, or 1."""
    return 90.0 if metric(name).unit == "degrees" else 1.0


def split_variant(name: str) -> tuple[str, str]:
    """(plain name, what is different about the variant)."""
    notes = []
    for ending, note in VARIANTS.items():
        if name.endswith(ending):
            name = name.removesuffix(ending)
            notes.append(note)
    return name, ", ".join(reversed(notes))
