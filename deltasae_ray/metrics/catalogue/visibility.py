"""Which latents of a change the base dictionary can see, and what stands beside that (docs/visibility.md)."""

from deltasae_ray.metrics.catalogue.entry import CONTROL, DESCRIBES, Metric

_IN_LABELS = "base dictionaries and flips are in the labels of the latents"
_BESIDE = "the positive control stands beside it"

# fmt: off
VISIBLE = (
    Metric("visible_share", "share of visible latents",
           "of the latents that can be judged (they repeat in another seed, fire often enough and have "
           "structure): those that the reference expresses as it does latents of other base dictionaries",
           ceiling="1", no_null=_IN_LABELS, no_kappa=_IN_LABELS),
    Metric("not_visible_share", "share of latents not visible f",
           "of the same latents: those that it expresses no better than directions which it cannot know (q ≤ "
           ".05); nested bootstrap over base dictionaries, seeds and latents, of all layers at once",
           null="0: latents of other base dictionaries", no_ceiling=_IN_LABELS),
    Metric("not_visible_share_random_adapter", "share of latents not visible, random adapters",
           "the same of the deltas of random adapters of the same strength, the mean of all draws; the "
           "interval reaches over those of all",
           no_null=DESCRIBES, no_ceiling=CONTROL),
    Metric("features_in_reference", "share of features in the reference",
           "the shares whose planted mixtures of base latents and absent directions give f; the middle of "
           "the interval",
           ceiling="1", no_null=_IN_LABELS, no_kappa=_IN_LABELS),
    Metric("pooled_missing_share", "pooled missing share M_p",
           "what Δ adds beside G and a pool of N(0, Σ_δ) atoms, over what it adds beside flipped G and the "
           "same pool; k atoms by OMP",
           null="1", no_ceiling=_BESIDE),
    Metric("missing_share_positive_control", "missing share of a change made of base latents",
           "M of a change with the codes of the delta dictionary and the atoms of a held-out base "
           "dictionary: what the reference misses where all is visible",
           null="1", tail="less", no_ceiling=CONTROL),
)
# fmt: on
