"""The one table of all metrics: what each is, what it is held against, and where it comes from. The
documentation is made from it.

A metric is entered in the file of its section; `SECTIONS` has them in the order of the documentation.
"""

import re
from typing import NamedTuple, get_args

from deltasae_ray.metrics.catalogue.audit import AUDIT
from deltasae_ray.metrics.catalogue.description import AS_PUBLISHED, CHANGE, DICTIONARY
from deltasae_ray.metrics.catalogue.entry import Metric as Metric
from deltasae_ray.metrics.catalogue.geometry import MATCHING, SIMILARITY, SUBSPACES
from deltasae_ray.metrics.catalogue.monitors import CLAIMS, MONITORS
from deltasae_ray.metrics.catalogue.patched import LOSS
from deltasae_ray.metrics.catalogue.sight import MEAN_CHANGE, RECONSTRUCTION, SIGHT
from deltasae_ray.metrics.catalogue.visibility import VISIBLE
from deltasae_ray.metrics.coding.variants import Variant

SEEDS = "_seeds"
"""Ending of a figure over all seeds of a dictionary (`divergence.seeds`)."""

VARIANTS = {
    SEEDS: "mean over the seeds of the dictionary; the interval holds the variance between seeds",
    "_token_mean": "mean over tokens instead of over energy: every token's change has norm 1",
    "_no_top3": "without the three coordinates of largest variance",
}
"""Endings that a name may carry, in this order from the right; the metric is otherwise the same."""

VARIED = (
    "missing_share",
    "missing_share_base_control",
    "missing_share_over_base",
    "structure_delta",
    "structure_reference",
    "fvu_delta",
    "fvu_reference",
    "fvu_pca",
    "fvu_random_atoms",
    # fmt: skip
    "gain_over_pca",
    "gain_over_random_atoms",
    "monitor_r2",
    "mean_share",
    "mean_missing_share",
)
"""Metrics that are also measured with `_token_mean`, `_no_top3` and both."""

SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Which latents are visible": VISIBLE,
    "What a dictionary can see": SIGHT,
    "Reconstruction": RECONSTRUCTION,
    "The mean change": MEAN_CHANGE,
    "Matching": MATCHING,
    "Subspaces": SUBSPACES,
    "Similarity of representations": SIMILARITY,
    "What the change does to the loss, patched into the base model": LOSS,
    "What the audit of single latents comes to": AUDIT,
    "What becomes of the user's monitors": MONITORS,
    "What is claimed that an adapter learnt": CLAIMS,
    "As published, for comparison": AS_PUBLISHED,
    "What the change is like": CHANGE,
    "The dictionary itself": DICTIONARY,
}
"""All metrics, in the order and under the headings of the documentation."""

PATCHED = ("loss_recovered", "loss_reached")
"""How the names of figures begin that come from patching deltas into the base model."""

AUDITED = "latent_"
"""How the names of figures begin that come from the audit of single latents."""

WATCHED, CLAIMED = "monitor.", "trigger."
"""How the names of figures begin that are of the user's monitors (a monitor's name follows), and of claims
what an adapter learnt; both are of whole adapters."""

SEEN = (*(m.name for m in VISIBLE), "missing_share_random_adapter", "max_cosine_random_adapter")
"""Figures that come from the decision on single latents, and those of random adapters beside it."""

BETWEEN = ("cka_adapters", "max_cosine_adapters", "missing_share_adapters")
"""Figures between two adapters."""

METRICS = {m.name: m for section in SECTIONS.values() for m in section}
"""By name, `{k}` and `{name}` included."""


class FigureName(NamedTuple):
    """The name of a figure, part by part: `missing_share_no_top3_seeds` is missing_share, in the variant
    no_top3, over seeds."""

    metric: str
    """Name in the catalogue, with its number for `{k}`."""
    variant: Variant = ""
    over_seeds: bool = False

    @property
    def figure(self) -> str:
        """The name that figures of single seeds have, as MLflow and stored measures use it."""
        return f"{self.metric}_{self.variant}" if self.variant else self.metric

    @property
    def name(self) -> str:
        """The whole name."""
        return f"{self.figure}{SEEDS}" if self.over_seeds else self.figure


def parse_name(name: str) -> FigureName:
    """The parts of a whole name: the one place where names are taken apart."""
    figure, over_seeds = name.removesuffix(SEEDS), name.endswith(SEEDS)
    for variant in sorted(filter(None, get_args(Variant)), key=len, reverse=True):
        if figure.endswith(f"_{variant}"):
            return FigureName(figure.removesuffix(f"_{variant}"), variant, over_seeds)
    return FigureName(figure, "", over_seeds)


def directions(name: str) -> int | None:
    """The k in the name of a figure of k directions, such as 16 in `angle_pca_k16`; None for any other."""
    plain = parse_name(name).metric
    return None if plain in METRICS or not (match := re.search(r"_k(\d+)$", plain)) else int(match[1])


def metric(name: str) -> Metric:
    """The entry of a metric as it is named in the tables: `angle_pca_k16`,
    `missing_share_no_top3_token_mean`.

    Raises:
        KeyError: no metric has this name.
    """
    plain = parse_name(name).metric
    if plain in METRICS:
        return METRICS[plain]
    if plain.startswith(WATCHED):
        return METRICS[re.sub(r"\.[\w-]+\.", ".{name}.", plain)]
    return METRICS[re.sub(r"\d+$", "{k}", plain)]


def scale(name: str) -> float:
    """How far apart two values of a metric can be, for "within a tenth of the scale": 90 degrees, or 1."""
    return 90.0 if metric(name).unit == "degrees" else 1.0


def split_variant(name: str) -> tuple[str, str]:
    """(plain name, what is different about the variant)."""
    parsed = parse_name(name)
    endings = name.removeprefix(parsed.metric)
    return parsed.metric, ", ".join(note for ending, note in reversed(VARIANTS.items()) if ending in endings)
