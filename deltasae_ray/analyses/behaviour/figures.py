"""Does the adapter change what the model says? The gate before anything is said of geometry."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.metrics.measure import Measure

MIN_KL = 1e-3
"""An adapter whose KL from the base model is not shown to exceed this on any text, in nats a token, has no
effect unless its loss moves."""
MIN_LOSS_CHANGE = 5e-3
"""An adapter whose loss is not shown to move by more than this, in nats a token, has no effect unless its KL
is larger."""
Z = 1.96
"""Standard errors from a value to the end of its interval."""
POWER = Z + 0.84
"""Standard errors by which an effect must lie beyond a limit, to be seen in 80 % of cases."""


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


def describe_losses(behaviour: Sequence[Behaviour]) -> str:
    """Says how each text's loss changed and how far predictions moved."""
    if not behaviour:
        return "Not measured"
    return "; ".join(f"{b.corpus} loss {_signed(b.loss_change)}, KL {b.kl:.3f}" for b in behaviour)


def nothing_shown(behaviour: Sequence[Behaviour]) -> tuple[str, ...]:
    """What a closed gate is worth: what was tested, and the smallest effect that would mostly have been seen.

    It closes no case: a change that waits for a trigger shows on no text without it.
    """
    parts = [f"No effect is shown on {b.corpus} ({_tested(b)}): {_seen_from(b)}" for b in behaviour]
    return (*parts, "This closes no case: what none of these texts brings out cannot show here")


def _tested(b: Behaviour) -> str:
    return f"{b.kl.n or b.loss_change.n} documents"


def _seen_from(b: Behaviour) -> str:
    """The smallest effects whose intervals would leave the limits in 80 % of cases."""
    seen = [
        f"{name} {limit + POWER * (m.ci[1] - m.ci[0]) / (2 * Z):.3g}"
        for name, m, limit in (
            ("a KL of", b.kl, MIN_KL),
            ("a loss change of", b.loss_change, MIN_LOSS_CHANGE),
        )
        if m.value is not None and m.ci is not None
    ]
    if not seen:
        return "what would have been seen is not known, since nothing has an interval: give it 30 documents"
    return f"{' or '.join(seen)} nats a token would have been seen in 80 % of cases"


def _signed(m: Measure) -> str:
    if m.value is None:
        return f"undefined ({m.reason})"
    return f"{m.value:+.3f}" + (f" [{m.ci[0]:+.3f}, {m.ci[1]:+.3f}]" if m.ci else "")
