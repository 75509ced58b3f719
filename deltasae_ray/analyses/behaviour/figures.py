"""Does the adapter change what the model says? The gate before anything is said of geometry."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.metrics.measure import Measure

MIN_KL = 1e-3
"""Nats per token. An adapter whose KL from the base model is not shown to exceed this on any text, and ..."""
MIN_LOSS_CHANGE = 5e-3
"""... whose loss is not shown to move by more than this, has no effect."""


@dataclass(frozen=True)
class Behaviour:
    """What the adapter does to the model's predictions on one held-out text."""

    corpus: str
    loss_change: Measure
    """Cross-entropy with the adapter less without, nats per token."""
    kl: Measure
    """KL(adapted ‖ base), nats per token."""
    before: float = 0.0
    """Cross-entropy of the base model, nats per token."""

    @property
    def after(self) -> float:
        """Cross-entropy with the adapter, nats per token."""
        return self.before + (self.loss_change.value or 0.0)


def changes_model(behaviour: Sequence[Behaviour]) -> bool:
    """Whether any text shows an effect: a KL whose interval lies above MIN_KL, or a loss whose interval lies
    beyond ± MIN_LOSS_CHANGE.

    Where there is no interval, the value itself decides.
    """
    for b in behaviour:
        low = None if b.kl.value is None else (b.kl.ci or (b.kl.value,))[0]
        if low is not None and low > MIN_KL:
            return True
        if b.loss_change.value is not None:
            low, high = b.loss_change.ci or (b.loss_change.value, b.loss_change.value)
            if low > MIN_LOSS_CHANGE or high < -MIN_LOSS_CHANGE:
                return True
    return False


def said(behaviour: Sequence[Behaviour]) -> str:
    """Of every text, in words."""
    if not behaviour:
        return "Not measured"
    return "; ".join(f"{b.corpus} loss {_signed(b.loss_change)}, KL {b.kl:.3f}" for b in behaviour)


def nothing_shown(behaviour: Sequence[Behaviour]) -> str:
    """What the closed gate is worth: an effect that is excluded, or one that is merely not shown."""
    within = (
        (b.kl.ci is not None and b.kl.ci[1] <= MIN_KL)
        and (
            b.loss_change.ci is not None
            and -MIN_LOSS_CHANGE <= b.loss_change.ci[0] <= b.loss_change.ci[1] <= MIN_LOSS_CHANGE
        )
        for b in behaviour
    )
    if all(within):
        return "There is nothing to see"
    limits = f"{MIN_KL:g} nats of KL or {MIN_LOSS_CHANGE:g} of loss"
    return f"No effect is shown, and one above {limits} is not excluded: measure more held-out text"


def _signed(m: Measure) -> str:
    if m.value is None:
        return f"undefined ({m.reason})"
    return f"{m.value:+.3f}" + (f" [{m.ci[0]:+.3f}, {m.ci[1]:+.3f}]" if m.ci else "")
