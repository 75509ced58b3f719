"""What is said of a change and of a dictionary by themselves, and the figures of the published study."""

from deltasae_ray.metrics.catalogue.entry import (
    ALIKE,
    AS_IT_WAS,
    BESIDE,
    CONTROL,
    DESCRIBES,
    HEAP,
    ISOTROPIC,
    PAPER,
    Metric,
)

# fmt: off
AS_PUBLISHED = (
    Metric("paper_max_cosine", "mean max-cosine as published",
           "mean over all decoder rows, dead ones included, signed",
           null="isotropic, analytic", ceiling=ALIKE, unit="cosine", source=PAPER,
           no_kappa=ISOTROPIC),
    Metric("paper_median_cosine", "median max-cosine as published",
           "median over all decoder rows, dead ones included, signed",
           null="isotropic, analytic", ceiling=ALIKE, unit="cosine", source=PAPER,
           no_kappa=ISOTROPIC),
    Metric("paper_max_cosine_untrained", "mean max-cosine of the decoder before training",
           "the same of the delta dictionary's decoder at its start, with its seed",
           null="isotropic, analytic", unit="cosine", source=HEAP,
           no_ceiling=CONTROL),
    Metric("paper_novel_share", "novel latents as published",
           "share of all decoder rows whose signed max-cosine is below .1 (the published threshold is not "
           "known here)",
           null="isotropic, analytic: 1 at the paper's sizes", ceiling=ALIKE, source=PAPER,
           no_kappa=ISOTROPIC),
    Metric("paper_angle_k{k}", "mean principal angle as published",
           "leading k right singular vectors of both unweighted decoders",
           null="random subspaces (Wachter)", unit="degrees", source=PAPER,
           no_ceiling=AS_IT_WAS),
    Metric("paper_relative_error", "reference applied to deltas (out of domain)",
           "Σ‖δ - SAE_G(δ)‖²/Σ‖δ‖²",
           null="1: predicting zero", ceiling="the delta dictionary", unit="ratio", source=PAPER,
           no_kappa=BESIDE),
    Metric("paper_relative_error_delta", "relative error of the delta dictionary as published",
           "Σ‖δ - SAE_Δ(δ)‖²/Σ‖δ‖², not about the mean",
           null="predicting the mean of the training deltas", unit="ratio", source=PAPER,
           no_ceiling=AS_IT_WAS),
)

CHANGE = (
    Metric("delta_norm", "norm of the change", "mean ‖δ‖ over tokens", unit="norm", source=PAPER,
           no_null=DESCRIBES, no_ceiling=DESCRIBES),
    Metric("delta_relative_energy", "size of the change",
           "Σ‖δ‖²/Σ‖h_b‖²",
           null="0: an adapter that changes nothing", unit="ratio", source="",
           no_ceiling=DESCRIBES),
    Metric("delta_participation_ratio", "directions that share the energy",
           "(Σλ)²/Σλ², training deltas",
           null="the base activations'", unit="directions", source="",
           no_ceiling=DESCRIBES),
)

DICTIONARY = (
    Metric("alive_share", "living latents", "share that fired in training", ceiling="1",
        source="SAE practice",
           no_null=DESCRIBES),
    Metric("firings_per_latent", "training firings per latent", "tokens · L0 / d_sae", unit="firings",
           no_null=DESCRIBES, no_ceiling=DESCRIBES),
    Metric("density", "active latents per token",
           "L0 where the architecture leaves it free",
           unit="latents", source="SAE practice",
           no_null=DESCRIBES, no_ceiling=DESCRIBES),
)
# fmt: on
