"""How dictionaries, subspaces and representations lie to each other."""

from deltasae_ray.metrics.catalogue.entry import (
    A_CEILING,
    CARRIED,
    CONTROL,
    MATCHED,
    NO_DRAWS,
    OF_THE_MEAN,
    SECOND_SEED,
    TWINS,
    Metric,
)

# fmt: off
MATCHING = (
    Metric("max_cosine", "mean max-cosine, living latents",
           "mean_i max_j cos(d_i, g_j)",
           null=MATCHED, ceiling=SECOND_SEED, tail="greater", unit="cosine",
           source="MMCS, Sharkey et al. 2022"),
    Metric("max_cosine_weighted", "the same weighted by energy",
           "weights E[z_i²]",
           null=CARRIED, ceiling=SECOND_SEED, tail="greater", unit="cosine"),
    Metric("max_cosine_base_control", "the base control's mean max-cosine",
           "a second dictionary of base activations, on other text; by the grid's recipe, also beside a "
           "reference that was given",
           null="as many rows drawn from N(0, Σ_h)", tail="greater", unit="cosine",
           no_ceiling=CONTROL),
    Metric("max_cosine_random_adapter", "a random adapter's mean max-cosine",
           "the same recipe on random adapters' deltas; the mean of all draws, the interval reaches over "
           "those of all",
           null="as many rows drawn from N(0, Σ) of that adapter's deltas", tail="greater", unit="cosine",
           no_ceiling=CONTROL),
    Metric("novel_share", "novel latents",
           "share below the 95 % quantile of the null's max |cos|; interval over latents, p against the "
           "shares of the null's "
           "dictionaries",
           null=".95 by construction", ceiling=SECOND_SEED, tail="less",
           no_kappa=OF_THE_MEAN),
    Metric("repeat_share", "latents that repeat",
           "share with |cos| ≥ .7 in a second seed",
           null="rows from N(0, Σ_δ)", source="Paulo & Belrose 2025",
           no_ceiling=A_CEILING),
)

SUBSPACES = (
    Metric("angle_pca_k{k}", "mean principal angle, PCA",
           "top k of δ against top k of h_b",
           null="span of k rows from N(0, Σ_δ)", ceiling="top k of δ on the evaluation documents",
           tail="less", unit="degrees",
           source="Knyazev & Argentati 2002",
           no_p=NO_DRAWS),
    Metric("angle_decoder_k{k}", "mean principal angle, decoders",
           "top k of diag(√E z²)·W_dec, both dictionaries",
           null="rows from N(0, Σ_δ), same energies", ceiling=SECOND_SEED, tail="less", unit="degrees"),
)

SIMILARITY = (
    Metric("coactivation", "how closely delta latents fire with a reference latent",
           "Σ e_i φ_i / Σ e_i, e_i = Σ z_i²; φ_i: correlation of firing with the reference latent whose φ is "
           "largest on training rows",
           null="partners exchanged among rows of the same token and band of positions; where tokens are not "
                "known, documents permuted, place by place", ceiling=SECOND_SEED, tail="greater",
           unit="correlation"),
    Metric("cka_adapters", "CKA of two adapters' deltas",
           "δ_r and δ_r', same rows",
           null="documents permuted", ceiling=TWINS, tail="greater", source="Kornblith 2019"),
    Metric("max_cosine_adapters", "max |cosine| of two adapters' dictionaries",
           "mean_i max_j |cos|, living latents; of another seed, and so from another start, where the study "
           "has two",
           null=MATCHED, ceiling=f"{TWINS}; without them {SECOND_SEED}", tail="greater", unit="cosine",
           source="MMCS"),
    Metric("missing_share_adapters", "missing share of one adapter's deltas in another's dictionary",
           "M(k) with the other adapter's dictionary in the place of G; of another seed, and so from another "
           "start, where there are two",
           null="1", ceiling=f"{TWINS}; without them {SECOND_SEED}", tail="less"),
)
# fmt: on
