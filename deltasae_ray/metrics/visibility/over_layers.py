"""Labels of many layers that hold together: with one interval a layer, some of twenty is wrong too often."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deltasae_ray.metrics.visibility.answer import Visibility
from deltasae_ray.metrics.visibility.decision import Label, label_of, unfitting
from deltasae_ray.metrics.visibility.resampled import share_interval

ORDER: tuple[Label, ...] = ("NOT VISIBLE", "INCONCLUSIVE", "PARTLY VISIBLE", "VISIBLE")
"""Which layer leads: one that is not visible, then what is not known."""


@dataclass(frozen=True)
class OverLayers:
    """Every layer's answer with an interval that holds for all layers at once."""

    layers: Mapping[str, Visibility]
    """In the order given."""

    @property
    def leading(self) -> str:
        """The layer whose label is the adapter's; of several the one that misses most."""
        return min(
            self.layers, key=lambda x: (ORDER.index(self.layers[x].label), -(self.layers[x].share.value or 0))
        )

    @property
    def label(self) -> Label:
        """NOT VISIBLE where a layer is; else INCONCLUSIVE where one is; else the worst."""
        return self.layers[self.leading].label


def over_layers(layers: Mapping[str, Visibility]) -> OverLayers:
    """Widens the intervals of f so that all hold at once with 95 % (Bonferroni), and labels each layer anew.

    The number of intervals is that of layers whose share counts latents; a narrow change's directions are
    counted, not sampled, and stay as they are.
    """
    sampled = [x for x in layers.values() if x.draws]
    return OverLayers({name: at_once(x, len(sampled)) for name, x in layers.items()})


def at_once(answer: Visibility, comparisons: int) -> Visibility:
    """One answer with an interval that holds at once with as many others."""
    if not answer.draws:
        return answer
    interval = share_interval(answer.draws, max(1, comparisons))
    label = label_of(interval, answer.share.n)
    reasons = answer.reasons
    if label == "INCONCLUSIVE" != answer.label:
        reasons = (*reasons, f"over {comparisons} layers at once: {unfitting(interval)}")
    share = replace(answer.share, ci=interval)
    return replace(answer, label=label, share=share, reasons=reasons)
