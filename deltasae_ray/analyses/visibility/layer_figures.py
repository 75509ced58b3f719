"""The rule at one layer: from counts of latents to a label, texts pooled only where they agree, and random
adapters of the same strength beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from deltasae_ray.analyses.visibility.count_figures import Counts
from deltasae_ray.analyses.visibility.figures import CellVisibility
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.visibility.decision import FEWEST, Label, label_of

FIGURE = "not_visible_share"
"""f by name of the catalogue."""


@dataclass(frozen=True)
class Sight:
    """What is known of one dictionary: its own answer, and those of random adapters of the same strength."""

    own: CellVisibility
    randoms: tuple[CellVisibility, ...] = ()
    effects: Mapping[int, Measure] = field(default_factory=dict)
    """Latent → nats by which the adapted model comes nearer to the base without it, where measured."""

    @property
    def judged_on(self) -> tuple[str, Counts]:
        """Which text decides, and its counts: all together ("") where texts agree, else the first, which the
        adapter was trained on."""
        if self.own.narrow or disagreement(self.own) is None:
            return "", self.own.counts
        first = self.own.texts[0]
        return first.corpus, first.counts


def disagreement(cell: CellVisibility) -> tuple[str, str] | None:
    """Finds two texts whose intervals of f lie apart; the intervals of all texts hold at once."""
    known = [t for t in cell.texts if t.counts.judged >= FEWEST]
    shares = {t.corpus: t.counts.not_visible_share(len(known)) for t in known}
    for one, other in combinations(shares, 2):
        (low, high), (lower, higher) = shares[one].ci or (0, 1), shares[other].ci or (0, 1)
        if low > higher or lower > high:
            return one, other
    return None


def label(sight: Sight, comparisons: int) -> tuple[Label, Measure, str]:
    """Applies the one rule; returns the label, f with its interval, and why it is inconclusive.

    Args:
        comparisons: layers whose intervals are to hold at once.
    """
    if sight.own.narrow:
        answer = sight.own.answer
        return answer.label, answer.share, answer.reasons[-1] if answer.label == "INCONCLUSIVE" else ""
    _, counts = sight.judged_on
    share = counts.not_visible_share(comparisons)
    if counts.judged < FEWEST or share.ci is None:
        return "INCONCLUSIVE", _undefined(sight.own, counts, share), _why_few(sight.own, counts)
    answer = label_of(share.ci, counts.judged)
    if answer != "INCONCLUSIVE":
        return answer, share, ""
    low, high = share.ci
    return answer, share, f"the interval [{low:.2f}, {high:.2f}] fits no label; {_more(counts, comparisons)}"


def _undefined(cell: CellVisibility, counts: Counts, share: Measure) -> Measure:
    return undefined(_why_few(cell, counts), n=counts.judged) if share.value is None else share


def _why_few(cell: CellVisibility, counts: Counts) -> str:
    if cell.answer.share.value is None and not cell.answer.latents:
        return cell.answer.share.reason
    too_few = f"{counts.judged} latents are judged, and {FEWEST} are needed for a label"
    return "; ".join([too_few, *cell.answer.reasons[:-1]][:3])


def _more(counts: Counts, comparisons: int) -> str:
    """How many judged latents would narrow the interval to a label, if the shares stay as they are."""
    for factor in (2, 4, 8, 16, 32):
        grown = counts.times(factor)
        interval = grown.not_visible_share(comparisons).ci
        if interval and label_of(interval, grown.judged) != "INCONCLUSIVE":
            return (
                f"some {factor * counts.judged:,} judged latents would decide it: raise fit.d_sae and"
                " corpus.fit_tokens together"
            )
    return (
        f"{counts.unsure} latents score as low as absent ones, and so do base latents, so more latents would"
        " not decide it: train the base dictionaries on more tokens"
    )


def measures(sights: Mapping[int, Sight]) -> dict[int, dict[str, Measure]]:
    """Layer → figures by name of the catalogue; intervals of f hold over all these layers at once."""
    return {layer: _measures(sight, len(sights)) for layer, sight in sights.items()}


def _measures(sight: Sight, layers: int) -> dict[str, Measure]:
    return _of_own(sight.own, layers) | _of_randoms(sight.randoms)


def _of_own(own: CellVisibility, layers: int) -> dict[str, Measure]:
    if own.answer.share.value is None and not own.counts.judged:
        gone = undefined(_why_few(own, own.counts))
        return {
            "visible_share": gone,
            FIGURE: gone,
            "features_in_reference": gone,
            "pooled_missing_share": own.pooled,
        }
    visible = _visible_directions(own) if own.narrow else own.counts.visible_share(layers)
    low, high = own.answer.features
    features = Measure((low + high) / 2, ceiling=1.0, ci=(low, high), n=own.counts.judged)
    if own.answer.calibration is None:
        features = undefined(f"{own.counts.judged} latents are judged, {FEWEST} are needed to read a share")
    return {
        "visible_share": replace(visible, ceiling=1.0),
        FIGURE: replace(own.not_visible_share(layers), null=0.0),
        "features_in_reference": features,
        "pooled_missing_share": own.pooled,
        "missing_share_positive_control": own.planted,
    }


def _of_randoms(randoms: Sequence[CellVisibility]) -> dict[str, Measure]:
    """The figures of random adapters, means over all draws."""
    if not randoms:
        return {}
    drawn = {FIGURE: [r.not_visible_share() for r in randoms]}
    drawn |= {name: [r.random[name] for r in randoms] for name in randoms[0].random}
    return {f"{name}_random_adapter": mean_of(measures) for name, measures in drawn.items()}


def _visible_directions(own: CellVisibility) -> Measure:
    """The share of the judged directions of a narrow change that are visible."""
    labels = [x.label for x in own.answer.directions if x.label != "cannot be judged"]
    if not labels:
        return undefined("no direction can be judged")
    share = Measure(labels.count("visible") / len(labels), n=len(labels))
    return share.because("ci", "all directions are counted: they are no sample")


def mean_of(draws: Sequence[Measure]) -> Measure:
    """The mean of a figure over random adapters; its interval reaches over those of all draws."""
    known = [m for m in draws if m.value is not None]
    if not known:
        return undefined(draws[0].reason, null=draws[0].null)
    value, nulls = sum(m.value or 0.0 for m in known) / len(known), [m.null for m in known]
    null = None if None in nulls else sum(x or 0.0 for x in nulls) / len(nulls)
    mean = Measure(value, null=null, n=sum(m.n for m in known))
    mean = mean.because("note", f"{len(known)} random adapters").because("p", "a mean over random adapters")
    ends = [m.ci for m in known if m.ci is not None]
    if not ends:
        return mean.because("ci", "interval undefined: no draw has one")
    return mean.within(min(low for low, _ in ends), max(high for _, high in ends))


def difference(one: Measure, other: Measure) -> Measure:
    """Subtracts two independent figures; the interval comes from those of either (Zou and Donner 2008)."""
    if one.value is None or other.value is None or one.ci is None or other.ci is None:
        return undefined(one.reason or other.reason or "an interval is missing")
    (l1, u1), (l2, u2), gap = one.ci, other.ci, one.value - other.value
    low = gap - math.hypot(one.value - l1, u2 - other.value)
    high = gap + math.hypot(u1 - one.value, other.value - l2)
    return Measure(gap, null=0.0, ci=(low, high), n=min(one.n, other.n))
