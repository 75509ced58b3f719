"""What the change does to the loss, patched into the base model: each figure by cross-entropy and by whole distributions."""

from deltasae_ray.divergence.catalogue.entry import BOUND, OWN, SAME_BUDGET, Metric

PURSUED = "{}, δ̂ = μ + OMP_k(δ - μ), k as for M; the larger dictionary cut to the smaller"


def _both(name: str, title: str, formula: str, null: str, ceiling: str = "1: the exact deltas", source: str = OWN) -> tuple[Metric, Metric]:
    """The figure of losses and that of distributions, `{}` in the formula being what either of them is."""
    tail = "greater" if null == SAME_BUDGET else None
    by_loss, by_kl = "(CE_0 - CE_δ̂)/(CE_0 - CE_δ)", "1 - KL(p_δ‖p_δ̂)/KL(p_δ‖p_0)"
    return (
        Metric(f"loss_{name}", title, formula.format(by_loss), null, ceiling, source, tail, no_kappa=BOUND),
        Metric(f"loss_{name}_kl", f"{title}, whole distributions", formula.format(by_kl), null, ceiling, source, tail, no_kappa=BOUND),
    )


# fmt: off
LOSS = (
    *_both("recovered", "loss recovered",
           "{}, δ̂ by the delta dictionary's own encoder: all its living atoms, k its latents per token",
           SAME_BUDGET, source="SAE practice; SAELens"),
    *_both("recovered_reference", "loss recovered by what a monitor sees",
           "{}, δ̂ = SAE_G(h_a) - SAE_G(h_b): all of G's living atoms, k the latents in which the two codes differ",
           SAME_BUDGET),
    *_both("recovered_atoms", "loss recovered by k atoms of the delta dictionary", PURSUED, SAME_BUDGET),
    *_both("recovered_atoms_reference", "loss recovered by k atoms of the reference", PURSUED, SAME_BUDGET),
    *_both("recovered_mean", "loss recovered by the mean change alone", "{}, δ̂ = μ", "0: no change"),
    *_both("reached", "share of the adapter's effect that the exact deltas at this layer reach",
           "{}, the adapter for δ and the exact deltas for δ̂",
           "0: no change", "1: the adapter"),
)
# fmt: on
