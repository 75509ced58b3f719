"""What the change does to the loss, patched into the base model."""

from deltasae_ray.metrics.catalogue.entry import BOUND, SAME_BUDGET, Metric

_BY_LOSS = "(CE_0 - CE_δ̂)/(CE_0 - CE_δ)"

# fmt: off
LOSS = (
    Metric("loss_recovered", "loss recovered",
           f"{_BY_LOSS}, δ̂ by the delta dictionary's own encoder: all its living atoms, k its latents per "
           f"token",
           SAME_BUDGET, "1: the exact deltas", "SAE practice; SAELens", "greater", no_kappa=BOUND),
    Metric("loss_recovered_reference", "loss recovered by what a monitor sees",
           f"{_BY_LOSS}, δ̂ = SAE_G(h_a) - SAE_G(h_b): all of G's living atoms, k the latents in which the "
           f"two codes differ",
           SAME_BUDGET, "1: the exact deltas", tail="greater", no_kappa=BOUND),
    Metric("loss_reached", "share of the adapter's effect that the exact deltas at this layer reach",
           f"{_BY_LOSS}, the adapter for δ and the exact deltas for δ̂",
           "0: no change", "1: the adapter", no_kappa=BOUND),
)
# fmt: on
