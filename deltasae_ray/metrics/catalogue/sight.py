"""What a dictionary can see of the change, how well it is reconstructed, and the mean change."""

from deltasae_ray.metrics.catalogue.entry import (
    A_CEILING,
    A_PLACE,
    BESIDE,
    BOUND,
    CONTROL,
    DESCRIBES,
    DIFFERENCE,
    FLIPS,
    ONE_NULL,
    SECOND_SEED,
    UNBOUNDED,
    Metric,
)

# fmt: off
SIGHT = (
    Metric("missing_share", "missing share M(k)",
           "1 - V(G)/V(Δ), V(X) = 1 - FVU_X(δ)/mean FVU_X(flipped δ), k atoms by OMP; δ and atoms without "
           "the direction of δ's mean; "
           "the larger dictionary is cut to the atoms it uses most, 4 times as many as the smaller has",
           null="1 by construction: a dictionary that codes δ no better than flipped δ",
           ceiling=SECOND_SEED + ", cut to the size of the first", tail="less"),
    Metric("missing_share_base_control", "missing share of the base control",
           "M of a second dictionary of base activations, on other text, cut to the size that the reference "
           "has in M; by the grid's "
           "recipe, also beside a reference that was given",
           null="1", tail="less",
           no_ceiling=CONTROL),
    Metric("missing_share_over_base", "missing share beyond the base control's",
           "M of the reference less M of the base control, from the same resamples of documents and flips: "
           "0, the reference misses no more "
           "than a second base dictionary does",
           null="0", tail="two-sided", no_ceiling=DIFFERENCE),
    Metric("missing_share_random_adapter", "missing share of a random adapter's deltas",
           "M of the deltas of adapters with Haar-rotated singular vectors and the strength of a trained "
           "one, by dictionaries of them, "
           "held against the same reference; the mean of all draws, the interval reaches over those of all",
           null="1", tail="less", no_ceiling=CONTROL),
    Metric("missing_share_halves", "missing share between halves of the documents",
           "M of the dictionary of one half of the training documents held against that of the other half, "
           "the larger cut to the "
           "smaller",
           null="1", tail="less",
           no_ceiling=A_CEILING),
    Metric("structure_delta", "structure found by the delta dictionary V(Δ)",
           "1 - FVU_Δ(δ)/mean FVU_Δ(flipped δ)",
           null="0: " + FLIPS, tail="greater",
           no_ceiling=UNBOUNDED),
    Metric("structure_reference", "structure seen by the reference V(G)",
           "1 - FVU_G(δ)/mean FVU_G(flipped δ)",
           null="0: " + FLIPS, tail="greater",
           no_ceiling=UNBOUNDED),
    Metric("monitor_r2", "monitor's R²",
           "R² of δ̂ = SAE_G(h_a) - SAE_G(h_b) at its best scale; the encoder always sees all coordinates; "
           "as a mean over tokens, δ̂ "
           "and δ are first divided by ‖δ - μ‖ of the token",
           null=FLIPS, ceiling="1", tail="greater",
           no_kappa=BOUND),
)

RECONSTRUCTION = (
    Metric("fvu_delta", "FVU by k atoms of the delta dictionary",
           "Σ‖δ-δ̂‖²/Σ‖δ-μ‖², OMP; like all figures by k atoms or directions, outside the direction of μ",
           null="k atoms from N(0, Σ_δ), as many to choose from", tail="less", source="Pati et al. 1993",
           no_ceiling=UNBOUNDED),
    Metric("fvu_reference", "FVU by k atoms of the reference",
           "the same with the reference's atoms",
           null=FLIPS, ceiling="the delta dictionary", tail="less", source="Pati et al. 1993",
           no_kappa=BESIDE),
    Metric("fvu_pca", "FVU by k principal directions",
           "variance outside the leading k directions of the training deltas",
           null="1 - k/d_model", ceiling="the delta dictionary", source="PCA",
           no_kappa=BESIDE),
    Metric("fvu_random_atoms", "FVU by k featureless atoms",
           "OMP with rows from N(0, Σ_δ)",
           null="1", ceiling="the delta dictionary",
           no_kappa=BESIDE),
    Metric("gain_over_pca", "delta dictionary's gain over PCA",
           "fvu_pca - fvu_delta, paired over documents",
           null="0", tail="greater",
           no_ceiling=DIFFERENCE),
    Metric("gain_over_random_atoms", "delta dictionary's gain over featureless atoms",
           "fvu_random_atoms - fvu_delta, paired",
           null="0", tail="greater",
           no_ceiling=DIFFERENCE),
    Metric("gain_over_gaussian", "delta dictionary's gain over one of Gaussian deltas",
           "fvu_gaussian less the delta dictionary's FVU at the same size, paired",
           null="0", tail="greater",
           no_ceiling=DIFFERENCE, no_p=ONE_NULL),
    Metric("fvu_encoder", "FVU through the dictionary's own encoder",
           "FVU of decode(encode(δ))",
           null="1: predicting the mean", source="SAE practice",
           no_ceiling=UNBOUNDED),
    Metric("gain_over_frozen_decoder", "delta dictionary's gain over a random decoder",
           "fvu_frozen_decoder - fvu_encoder, paired",
           null="0", tail="greater", source="arXiv 2602.14111",
           no_ceiling=DIFFERENCE, no_p=ONE_NULL),
)

MEAN_CHANGE = (
    Metric("mean_direction_share", "share of the variation along the mean change",
           "Σ⟨δ - μ, μ/‖μ‖⟩² / Σ‖δ - μ‖²; set aside when deltas are coded",
           null="1/d_model",
           no_ceiling=DESCRIBES),
    Metric("mean_share", "share of the mean change",
           "‖μ‖²/E‖δ‖²; as a mean over tokens, here and below, μ is the mean of δ/‖δ‖",
           null="documents' sums with random signs", tail="greater",
           no_ceiling=UNBOUNDED),
    Metric("mean_missing_share", "missing share of the mean change",
           "mean_unexplained_k8 over its null",
           null="1", ceiling="0", tail="less",
           no_kappa=A_PLACE),
)
# fmt: on
