"""What is said of a change and of a dictionary by themselves, and the figures of the published study."""

from deltasae_ray.divergence.catalogue.entry import ALIKE, HEAP, PAPER, Metric

# fmt: off
AS_PUBLISHED = (
    Metric("paper_max_cosine", "mean max-cosine as published",
           "mean over all decoder rows, dead ones included, signed",
           null="isotropic, analytic", ceiling=ALIKE, unit="cosine", source=PAPER),
    Metric("paper_median_cosine", "median max-cosine as published",
           "median over all decoder rows, dead ones included, signed",
           null="isotropic, analytic", ceiling=ALIKE, unit="cosine", source=PAPER),
    Metric("paper_max_cosine_untrained", "mean max-cosine of the decoder before training",
           "the same of the delta dictionary's decoder at its start, with its seed",
           null="isotropic, analytic", unit="cosine", source=HEAP),
    Metric("paper_novel_share", "novel latents as published",
           "share of all decoder rows whose signed max-cosine is below .1 (the published threshold is not known here)",
           null="isotropic, analytic: 1 at the paper's sizes", ceiling=ALIKE, source=PAPER),
    Metric("paper_angle_k{k}", "mean principal angle as published",
           "leading k right singular vectors of both unweighted decoders",
           null="random subspaces (Wachter)", unit="degrees", source=PAPER),
    Metric("paper_relative_error", "reference applied to deltas (out of domain)",
           "Σ‖δ - SAE_G(δ)‖²/Σ‖δ‖²",
           null="1: predicting zero", ceiling="the delta dictionary", unit="ratio", source=PAPER),
    Metric("paper_relative_error_delta", "relative error of the delta dictionary as published",
           "Σ‖δ - SAE_Δ(δ)‖²/Σ‖δ‖², not about the mean",
           null="predicting the mean of the training deltas", unit="ratio", source=PAPER),
)

CHANGE = (
    Metric("delta_norm", "norm of the change", "mean ‖δ‖ over tokens", unit="norm", source=PAPER),
    Metric("delta_relative_energy", "size of the change",
           "Σ‖δ‖²/Σ‖h_b‖²",
           null="0: an adapter that changes nothing", unit="ratio", source=""),
    Metric("delta_participation_ratio", "directions that share the energy",
           "(Σλ)²/Σλ², training deltas",
           null="the base activations'", unit="directions", source=""),
    Metric("delta_effective_rank", "effective rank",
           "exp H(λ/Σλ)",
           null="the base activations'", unit="directions", source="Roy & Vetterli 2007"),
    Metric("delta_dims_{k}", "directions that hold {k} % of the energy",
           "smallest k",
           null="the base activations'", unit="directions", source=""),
    Metric("delta_top3_energy", "energy in the three largest coordinates",
           "share of the variance",
           null="3/d_model", source=""),
    Metric("delta_top_token_energy", "energy in the top 0.1 % of tokens", "share of Σ‖δ‖²", null="0.1 %", source=""),
)

DICTIONARY = (
    Metric("alive_share", "living latents", "share that fired in training", ceiling="1", source="SAE practice"),
    Metric("firings_per_latent", "training firings per latent", "tokens · L0 / d_sae", unit="firings"),
    Metric("effective_latents", "effective latents", "exp H(p), p_i ∝ E[z_i²] on evaluation tokens", unit="latents"),
    Metric("density", "active latents per token",
           "L0 where the architecture leaves it free",
           unit="latents", source="SAE practice"),
)
# fmt: on
