"""The one table of all metrics: what each is, what it is held against, and where it comes from. The documentation is made from it."""

import re
from dataclasses import dataclass

from deltasae_ray.divergence.statistics import Tail


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a figure before believing it."""

    name: str
    """As in the tables; `{k}` stands for a number of directions or atoms."""
    title: str
    formula: str
    null: str
    """How the null is made; empty where the figure only describes."""
    ceiling: str
    """How the ceiling is made; empty where there is none."""
    source: str
    """Who proposed it."""
    tail: Tail | None
    """Which values speak against the null; None where the figure has no p."""
    unit: str


_FLIPS = "the same deltas with random signs in the eigenbasis of their covariance (5 draws or more)"
_MATCHED = "as many rows drawn from N(0, Σ_δ), 5 dictionaries or more"
_SEEDS = "a second seed of the delta dictionary"
_OWN = "this project"
_TWINS = "two training seeds of one rank (adapt.seeds=2)"
_PAPER = "arXiv 2605.28896"
_HEAP = "Heap et al. 2025"
_ALIKE = "the base control (by the grid's recipe), measured alike"
_PATCHED_NULL = "δ̂ = μ + OMP_k(δ - μ) by atoms from N(0, Σ_δ), of the same number and k as δ̂ here"

SEEDS = "_seeds"
"""Ending of a figure over all seeds of a dictionary (`divergence.seeds`)."""

VARIANTS = {
    SEEDS: "mean over the seeds of the dictionary; the interval holds the variance between seeds",
    "_token_mean": "mean over tokens instead of over energy: every token's change has norm 1",
    "_no_top3": "without the three coordinates of largest variance",
}
"""Endings that a name may carry, in this order from the right; the metric is otherwise the same."""

VARIED = ("missing_share", "structure_delta", "structure_reference", "fvu_delta", "fvu_reference", "fvu_pca", "fvu_random_atoms",
          "gain_over_pca", "gain_over_random_atoms", "subspace_score", "monitor_r2", "monitor_gain", "monitor_fvu",
          "mean_share", "mean_unexplained_k{k}", "mean_missing_share")  # fmt: skip
"""Metrics that are also measured with `_token_mean`, `_no_top3` and both."""

SECTIONS: dict[str, tuple[Metric, ...]] = {
    "What a dictionary can see": (
        Metric(
            "missing_share",
            "missing share M(k)",
            "1 - V(G)/V(Δ), V(X) = 1 - FVU_X(δ)/mean FVU_X(flipped δ), k atoms by OMP; δ and atoms without the direction of δ's mean; "
            "the larger dictionary is cut to the atoms it uses most, 4 times as many as the smaller has",
            "1 by construction: a dictionary that codes δ no better than flipped δ",
            _SEEDS + ", cut to the size of the first",
            _OWN,
            "less",
            "share",
        ),
        Metric("missing_share_k{k}", "the same with fewer atoms", "M with k atoms per token", "1", "", _OWN, "less", "share"),
        Metric(
            "missing_share_base_atoms",
            "missing share of featureless base atoms",
            "M of rows from N(0, Σ_h), as many as the reference has and cut as it is",
            "1",
            "",
            _OWN,
            "less",
            "share",
        ),
        Metric(
            "missing_share_base_control",
            "missing share of the base control",
            "M of a second dictionary of base activations, on other text, cut to the size that the reference has in M; "
            "by the grid's recipe, also beside a reference that was given",
            "1",
            "",
            _OWN,
            "less",
            "share",
        ),
        Metric(
            "missing_share_halves",
            "missing share between halves of the documents",
            "M of the dictionary of one half of the training documents held against that of the other half, the larger cut to the smaller",
            "1",
            "",
            _OWN,
            "less",
            "share",
        ),
        Metric(
            "structure_delta",
            "structure found by the delta dictionary V(Δ)",
            "1 - FVU_Δ(δ)/mean FVU_Δ(flipped δ)",
            "0: " + _FLIPS,
            "",
            _OWN,
            "greater",
            "share",
        ),
        Metric(
            "structure_reference",
            "structure seen by the reference V(G)",
            "1 - FVU_G(δ)/mean FVU_G(flipped δ)",
            "0: " + _FLIPS,
            "",
            _OWN,
            "greater",
            "share",
        ),
        Metric(
            "structure_gaussian",
            "structure found by a dictionary of Gaussian deltas",
            "1 - FVU(δ)/mean FVU(flipped δ), the same recipe fitted to rows from N(μ, Σ_δ)",
            "0: " + _FLIPS,
            "",
            _HEAP,
            "greater",
            "share",
        ),
        Metric(
            "monitor_r2",
            "monitor's R²",
            "R² of δ̂ = SAE_G(h_a) - SAE_G(h_b) at its best scale; the encoder always sees all coordinates; as a mean over tokens, δ̂ and δ "
            "are first divided by ‖δ - μ‖ of the token",
            _FLIPS,
            "1",
            _OWN,
            "greater",
            "share",
        ),
        Metric("monitor_gain", "monitor's gain", "Σ⟨δ̂, δ⟩ / Σ‖δ‖², about their means", _FLIPS, "1", _OWN, "greater", "ratio"),
        Metric("monitor_fvu", "monitor's FVU", "Σ‖δ - δ̂‖² / Σ‖δ - μ‖²", _FLIPS, "0", _OWN, "less", "ratio"),
        Metric(
            "reference_fvu_base",
            "reference's FVU on base activations",
            "FVU_G(h_b)",
            "1: predicting the mean",
            "",
            "SAE practice",
            None,
            "share",
        ),
        Metric(
            "reference_fvu_adapted",
            "reference's FVU on adapted activations",
            "FVU_G(h_a)",
            "1: predicting the mean",
            "FVU_G(h_b)",
            "SAE practice",
            None,
            "share",
        ),
    ),
    "Reconstruction": (
        Metric(
            "fvu_delta",
            "FVU by k atoms of the delta dictionary",
            "Σ‖δ-δ̂‖²/Σ‖δ-μ‖², OMP; like all figures by k atoms or directions, outside the direction of μ",
            "k atoms from N(0, Σ_δ), as many to choose from",
            "",
            "Pati et al. 1993",
            "less",
            "share",
        ),
        Metric(
            "fvu_reference",
            "FVU by k atoms of the reference",
            "the same with the reference's atoms",
            _FLIPS,
            "the delta dictionary",
            "Pati et al. 1993",
            "less",
            "share",
        ),
        Metric(
            "fvu_pca",
            "FVU by k principal directions",
            "variance outside the leading k directions of the training deltas",
            "1 - k/d_model",
            "the delta dictionary",
            "PCA",
            None,
            "share",
        ),
        Metric(
            "fvu_random_atoms",
            "FVU by k featureless atoms",
            "OMP with rows from N(0, Σ_δ)",
            "1",
            "the delta dictionary",
            _OWN,
            None,
            "share",
        ),
        Metric(
            "gain_over_pca",
            "delta dictionary's gain over PCA",
            "fvu_pca - fvu_delta, paired over documents",
            "0",
            "",
            _OWN,
            "greater",
            "share",
        ),
        Metric(
            "gain_over_random_atoms",
            "delta dictionary's gain over featureless atoms",
            "fvu_random_atoms - fvu_delta, paired",
            "0",
            "",
            _OWN,
            "greater",
            "share",
        ),
        Metric(
            "fvu_gaussian",
            "FVU by k atoms of a dictionary of Gaussian deltas",
            "OMP on real δ; the same recipe fitted to as many rows from N(μ, Σ_δ); the larger dictionary cut to the smaller",
            "1",
            "the delta dictionary",
            _HEAP,
            None,
            "share",
        ),
        Metric(
            "gain_over_gaussian",
            "delta dictionary's gain over one of Gaussian deltas",
            "fvu_gaussian less the delta dictionary's FVU at the same size, paired",
            "0",
            "",
            _OWN,
            "greater",
            "share",
        ),
        Metric(
            "fvu_encoder",
            "FVU through the dictionary's own encoder",
            "FVU of decode(encode(δ))",
            "1: predicting the mean",
            "",
            "SAE practice",
            None,
            "share",
        ),
        Metric(
            "fvu_frozen_decoder",
            "FVU through the encoder of a random decoder",
            "FVU of decode(encode(δ)); the same recipe, decoder rows random and never trained",
            "1: predicting the mean",
            "the delta dictionary's own encoder",
            "arXiv 2602.14111",
            None,
            "share",
        ),
        Metric(
            "gain_over_frozen_decoder",
            "delta dictionary's gain over a random decoder",
            "fvu_frozen_decoder - fvu_encoder, paired",
            "0",
            "",
            "arXiv 2602.14111",
            "greater",
            "share",
        ),
        Metric("k_at_fvu", "atoms needed", "smallest OMP k with FVU ≤ .25, k ≤ 32", "as many rows from N(0, Σ_δ)", "", _OWN, None, "atoms"),
        Metric(
            "k_at_fvu_reference",
            "atoms needed of the reference",
            "the same with the reference's atoms",
            "as many rows from N(0, Σ_δ)",
            "",
            _OWN,
            None,
            "atoms",
        ),
        Metric(
            "subspace_score",
            "subspace score B(k)",
            "(FVU_G - FVU_Δ)/(FVU_rot - FVU_Δ), dictionaries of the sizes they have in M",
            "1: Haar-rotated references, cut as the reference is",
            "0: the delta dictionary",
            _OWN,
            "less",
            "ratio",
        ),
    ),
    "The mean change": (
        Metric(
            "mean_direction_share",
            "share of the variation along the mean change",
            "Σ⟨δ - μ, μ/‖μ‖⟩² / Σ‖δ - μ‖²; set aside when deltas are coded",
            "1/d_model",
            "",
            _OWN,
            None,
            "share",
        ),
        Metric(
            "mean_share",
            "share of the mean change",
            "‖μ‖²/E‖δ‖²; as a mean over tokens, here and below, μ is the mean of δ/‖δ‖",
            "documents' sums with random signs",
            "",
            _OWN,
            "greater",
            "share",
        ),
        Metric(
            "mean_unexplained_k{k}",
            "mean change beyond k atoms of the reference",
            "‖μ - OMP_k(μ)‖²/‖μ‖²",
            "μ with random signs in the eigenbasis of Σ_h (1999 draws)",
            "",
            _OWN,
            "less",
            "share",
        ),
        Metric(
            "mean_missing_share", "missing share of the mean change", "mean_unexplained_k8 over its null", "1", "0", _OWN, "less", "share"
        ),
    ),
    "Matching": (
        Metric(
            "max_cosine",
            "mean max-cosine, living latents",
            "mean_i max_j cos(d_i, g_j)",
            _MATCHED,
            _SEEDS,
            "MMCS, Sharkey et al. 2022",
            "greater",
            "cosine",
        ),
        Metric(
            "median_cosine",
            "median max-cosine, living latents",
            "median_i max_j cos(d_i, g_j)",
            _MATCHED,
            _SEEDS,
            "arXiv 2605.28896",
            "greater",
            "cosine",
        ),
        Metric("max_cosine_weighted", "the same weighted by energy", "weights E[z_i²]", _MATCHED, _SEEDS, _OWN, "greater", "cosine"),
        Metric("max_abs_cosine", "mean max |cosine|", "mean_i max_j |cos(d_i, g_j)|", _MATCHED, _SEEDS, "MMCS", "greater", "cosine"),
        Metric("max_abs_cosine_weighted", "the same weighted by energy", "weights E[z_i²]", _MATCHED, _SEEDS, _OWN, "greater", "cosine"),
        Metric(
            "max_cosine_back",
            "mean max-cosine, reference to deltas",
            "mean_j max_i cos(d_i, g_j)",
            _MATCHED,
            "",
            "MMCS",
            "greater",
            "cosine",
        ),
        Metric(
            "max_cosine_base_control",
            "the base control's mean max-cosine",
            "a second dictionary of base activations, on other text; by the grid's recipe, also beside a reference that was given",
            "as many rows drawn from N(0, Σ_h)",
            "",
            _OWN,
            "greater",
            "cosine",
        ),
        Metric(
            "max_cosine_gaussian",
            "mean max-cosine of a dictionary of Gaussian deltas",
            "the same recipe fitted to rows from N(μ, Σ_δ): a null with training in it",
            _MATCHED,
            "",
            _HEAP,
            "greater",
            "cosine",
        ),
        Metric(
            "max_cosine_random_adapter",
            "a random adapter's mean max-cosine",
            "the same recipe on a random adapter's deltas",
            "isotropic, analytic",
            "",
            _OWN,
            None,
            "cosine",
        ),
        Metric(
            "shared_{k}",
            "latents shared one to one",
            "share of pairs with |cos| ≥ {k} %, Hungarian assignment",
            "rows from N(0, Σ_δ)",
            _SEEDS,
            "Paulo & Belrose 2025",
            None,
            "share",
        ),
        Metric(
            "novel_share",
            "novel latents",
            "share below the 95 % quantile of the null's max |cos|; interval over latents, p against the shares of the null's dictionaries",
            ".95 by construction",
            _SEEDS,
            _OWN,
            "less",
            "share",
        ),
        Metric(
            "novel_share_halves",
            "novel latents, on other documents",
            "mean novel share of dictionaries of two halves of the training documents; interval over the halves",
            ".95 by construction",
            "",
            _OWN,
            None,
            "share",
        ),
        Metric(
            "repeat_share",
            "latents that repeat",
            "share with |cos| ≥ .7 in a second seed",
            "rows from N(0, Σ_δ)",
            "",
            "Paulo & Belrose 2025",
            None,
            "share",
        ),
        Metric(
            "repeat_share_halves",
            "latents that repeat on other documents",
            "share with |cos| ≥ .7 between dictionaries of two halves of the training documents, from starts of their own",
            "rows from N(0, Σ_δ)",
            "",
            "Paulo & Belrose 2025",
            None,
            "share",
        ),
        Metric(
            "max_abs_cosine_halves",
            "mean max |cosine| between halves of the documents",
            "mean_i max_j |cos|, dictionaries of two halves of the training documents, from starts of their own",
            _MATCHED,
            "",
            "MMCS",
            "greater",
            "cosine",
        ),
        Metric("antipodal_share", "antipodal latents", "share with a partner at cos ≤ -.9", "0", "", _OWN, None, "share"),
    ),
    "Subspaces": (
        Metric(
            "angle_pca_k{k}",
            "mean principal angle, PCA",
            "top k of δ against top k of h_b",
            "span of k rows from N(0, Σ_δ)",
            "top k of δ on the evaluation documents",
            "Knyazev & Argentati 2002",
            "less",
            "degrees",
        ),
        Metric("overlap_pca_k{k}", "overlap of the same", "‖QₐᵀQ_b‖²/k", "k/d_model", "δ on the evaluation documents", "", None, "share"),
        Metric("projection_energy_k{k}", "δ inside the top k of h_b", "Σ‖Q_bᵀ(δ-μ)‖²/Σ‖δ-μ‖²", "k/d_model", "1", "", None, "share"),
        Metric(
            "angle_decoder_k{k}",
            "mean principal angle, decoders",
            "top k of diag(√E z²)·W_dec, both dictionaries",
            "rows from N(0, Σ_δ), same energies",
            _SEEDS,
            _OWN,
            "less",
            "degrees",
        ),
    ),
    "Similarity of representations": (
        Metric(
            "cka_delta_base",
            "CKA of δ and h_b",
            "unbiased HSIC, linear, centred",
            "documents permuted",
            "",
            "Kornblith 2019; Nguyen 2021",
            "greater",
            "share",
        ),
        Metric(
            "cka_adapted_base",
            "CKA of h_a and h_b",
            "unbiased HSIC, linear, centred",
            "documents permuted",
            "1",
            "Kornblith 2019",
            "greater",
            "share",
        ),
        Metric(
            "cka_codes",
            "CKA of the codes",
            "z of δ and z_G of h_b, same rows",
            "documents permuted",
            _SEEDS,
            "Kornblith 2019",
            "greater",
            "share",
        ),
        Metric(
            "coactivation",
            "how closely delta latents fire with a reference latent",
            "Σ e_i φ_i / Σ e_i, e_i = Σ z_i²; φ_i: correlation of firing with the reference latent whose φ is largest on training rows",
            "documents permuted, place by place",
            _SEEDS,
            _OWN,
            "greater",
            "correlation",
        ),
        Metric(
            "cka_adapters",
            "CKA of two adapters' deltas",
            "δ_r and δ_r', same rows",
            "documents permuted",
            _TWINS,
            "Kornblith 2019",
            "greater",
            "share",
        ),
        Metric(
            "max_cosine_adapters",
            "max |cosine| of two adapters' dictionaries",
            "mean_i max_j |cos|, living latents; of another seed, and so from another start, where the study has two",
            _MATCHED,
            f"{_TWINS}; without them {_SEEDS}",
            "MMCS",
            "greater",
            "cosine",
        ),
        Metric(
            "missing_share_adapters",
            "missing share of one adapter's deltas in another's dictionary",
            "M(k) with the other adapter's dictionary in the place of G",
            "1",
            f"{_TWINS}; without them {_SEEDS}",
            _OWN,
            "less",
            "share",
        ),
    ),
    "What the change does to the loss, patched into the base model": (
        *(
            Metric(
                f"loss_{name}{ending}",
                f"{title}{', whole distributions' if ending else ''}",
                formula.format("1 - KL(p_δ‖p_δ̂)/KL(p_δ‖p_0)" if ending else "(CE_0 - CE_δ̂)/(CE_0 - CE_δ)"),
                null,
                "1: the exact deltas" if name != "reached" else "1: the adapter",
                source,
                "greater" if null == _PATCHED_NULL else None,
                "share",
            )
            for name, title, formula, null, source in (
                (
                    "recovered",
                    "loss recovered",
                    "{}, δ̂ by the delta dictionary's own encoder: all its living atoms, k its latents per token",
                    _PATCHED_NULL,
                    "SAE practice; SAELens",
                ),
                (
                    "recovered_reference",
                    "loss recovered by what a monitor sees",
                    "{}, δ̂ = SAE_G(h_a) - SAE_G(h_b): all of G's living atoms, k the latents in which the two codes differ",
                    _PATCHED_NULL,
                    _OWN,
                ),
                (
                    "recovered_atoms",
                    "loss recovered by k atoms of the delta dictionary",
                    "{}, δ̂ = μ + OMP_k(δ - μ), k as for M; the larger dictionary cut to the smaller",
                    _PATCHED_NULL,
                    _OWN,
                ),
                (
                    "recovered_atoms_reference",
                    "loss recovered by k atoms of the reference",
                    "{}, δ̂ = μ + OMP_k(δ - μ), k as for M; the larger dictionary cut to the smaller",
                    _PATCHED_NULL,
                    _OWN,
                ),
                ("recovered_mean", "loss recovered by the mean change alone", "{}, δ̂ = μ", "0: no change", _OWN),
                (
                    "reached",
                    "share of the adapter's effect that the exact deltas at this layer reach",
                    "{}, the adapter for δ and the exact deltas for δ̂",
                    "0: no change",
                    _OWN,
                ),
            )
            for ending in ("", "_kl")
        ),
    ),
    "As published, for comparison": (
        Metric(
            "paper_max_cosine",
            "mean max-cosine as published",
            "mean over all decoder rows, dead ones included, signed",
            "isotropic, analytic",
            _ALIKE,
            _PAPER,
            None,
            "cosine",
        ),
        Metric(
            "paper_median_cosine",
            "median max-cosine as published",
            "median over all decoder rows, dead ones included, signed",
            "isotropic, analytic",
            _ALIKE,
            _PAPER,
            None,
            "cosine",
        ),
        Metric(
            "paper_max_cosine_untrained",
            "mean max-cosine of the decoder before training",
            "the same of the delta dictionary's decoder at its start, with its seed",
            "isotropic, analytic",
            "",
            _HEAP,
            None,
            "cosine",
        ),
        Metric(
            "paper_novel_share",
            "novel latents as published",
            "share of all decoder rows whose signed max-cosine is below .1 (the published threshold is not known here)",
            "isotropic, analytic: 1 at the paper's sizes",
            _ALIKE,
            _PAPER,
            None,
            "share",
        ),
        Metric(
            "paper_angle_k{k}",
            "mean principal angle as published",
            "leading k right singular vectors of both unweighted decoders",
            "random subspaces (Wachter)",
            "",
            _PAPER,
            None,
            "degrees",
        ),
        Metric(
            "paper_relative_error",
            "reference applied to deltas (out of domain)",
            "Σ‖δ - SAE_G(δ)‖²/Σ‖δ‖²",
            "1: predicting zero",
            "the delta dictionary",
            _PAPER,
            None,
            "ratio",
        ),
        Metric(
            "paper_relative_error_delta",
            "relative error of the delta dictionary as published",
            "Σ‖δ - SAE_Δ(δ)‖²/Σ‖δ‖², not about the mean",
            "predicting the mean of the training deltas",
            "",
            _PAPER,
            None,
            "ratio",
        ),
    ),
    "What the change is like": (
        Metric("delta_norm", "norm of the change", "mean ‖δ‖ over tokens", "", "", _PAPER, None, "norm"),
        Metric("delta_relative_energy", "size of the change", "Σ‖δ‖²/Σ‖h_b‖²", "0: an adapter that changes nothing", "", "", None, "ratio"),
        Metric(
            "delta_participation_ratio",
            "directions that share the energy",
            "(Σλ)²/Σλ², training deltas",
            "the base activations'",
            "",
            "",
            None,
            "directions",
        ),
        Metric(
            "delta_effective_rank", "effective rank", "exp H(λ/Σλ)", "the base activations'", "", "Roy & Vetterli 2007", None, "directions"
        ),
        Metric(
            "delta_dims_{k}", "directions that hold {k} % of the energy", "smallest k", "the base activations'", "", "", None, "directions"
        ),
        Metric("delta_top3_energy", "energy in the three largest coordinates", "share of the variance", "3/d_model", "", "", None, "share"),
        Metric("delta_top_token_energy", "energy in the top 0.1 % of tokens", "share of Σ‖δ‖²", "0.1 %", "", "", None, "share"),
    ),
    "The dictionary itself": (
        Metric("alive_share", "living latents", "share that fired in training", "", "1", "SAE practice", None, "share"),
        Metric("firings_per_latent", "training firings per latent", "tokens · L0 / d_sae", "", "", _OWN, None, "firings"),
        Metric("effective_latents", "effective latents", "exp H(p), p_i ∝ E[z_i²] on evaluation tokens", "", "", _OWN, None, "latents"),
        Metric("density", "active latents per token", "L0 where the architecture leaves it free", "", "", "SAE practice", None, "latents"),
    ),
}
"""All metrics, in the order and under the headings of the documentation."""

PATCHED = ("loss_recovered", "loss_reached")
"""How the names of figures begin that come from patching deltas into the base model."""

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
