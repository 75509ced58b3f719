"""What the audit's rows come to; the figures of single latents are in `audit.parquet` and are named in
docs/audit.md."""

from deltasae_ray.metrics.catalogue.entry import BOUND, MATCHED, Metric

# fmt: off
AUDIT = (
    Metric("latent_blind_energy", "energy of the latents that the reference cannot express",
           "Σ e_i (1 - R²_i) / Σ e_i, R²_i of decoder row i by k atoms of G; the 1,024 latents of most "
           "energy",
           "all rows with the same random signs in the eigenbasis of base activations, 5 draws or more",
           "0: G expresses all of them",
           tail="greater", no_kappa=BOUND),
    Metric("latent_repeating_energy", "energy of the latents that repeat",
           "Σ e_i over latents with max |cos| ≥ .7 in the other seeds, on average / Σ e_i",
           MATCHED, "1: all of them", "Paulo & Belrose 2025", no_kappa=BOUND),
)
# fmt: on
