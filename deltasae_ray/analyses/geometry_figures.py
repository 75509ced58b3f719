"""What the missing share says by itself: M and M_p, and a label only where both agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from deltasae_ray.metrics.catalogue import SEEDS
from deltasae_ray.metrics.coding.missing_share import MIN_FIRINGS, MIN_PARTICIPATION, MIN_STRUCTURE
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.sae.identity import DictionaryId

Label = Literal["NO EFFECT", "NOT VISIBLE", "PARTLY VISIBLE", "INCONCLUSIVE", "VISIBLE"]

VISIBLE_BELOW = 0.3
"""The whole interval of M lies below: VISIBLE."""
NOT_VISIBLE_ABOVE = 0.85
"""The whole interval of M lies above: NOT VISIBLE."""
PARTLY_WITHIN = (0.1, 0.95)
"""The whole interval of M lies inside, and none of the above: PARTLY VISIBLE."""
MOSTLY_CONSTANT = 0.5
"""Lower bound of the mean's share of the energy from which, if nothing else has structure, the constant shift
is what is judged."""
SEEDS_WIDEN = 1.5
"""An interval over seeds this many times as long as one seed's own asks for seeds and not for tokens."""
WEAK_BELOW = -0.05
"""The whole interval of M lies below: the reference codes the change better than its own dictionary does. As
much as featureless padding may move M counts as none: where both dictionaries are the truth, M is −.03."""
WEAK = "the delta dictionary is weak: give it more tokens (corpus.fit_tokens) or a larger fit.k"
CHANGE, TRIMMED = "the change", "the change outside its three largest coordinates"
"""What M is the missing share of."""
MORE_TOKENS = "code more tokens (diverge.code_tokens), then harvest more evaluation documents"
MORE_SEEDS = "the seeds of the dictionary differ too much, so fit more of them (fit.seeds)"


@dataclass(frozen=True)
class Figures(DictionaryId):
    """The measures of one dictionary, by name of the catalogue."""

    measures: Mapping[str, Measure]

    def get(self, name: str) -> Measure:
        return self.measures.get(name, undefined(f"{name} was not measured"))

    def over_seeds(self, name: str) -> Measure:
        """The figure over all seeds where there are several, whose interval holds what another seed would
        have given; else this seed's."""
        return self.measures.get(f"{name}{SEEDS}", self.get(name))


@dataclass(frozen=True)
class MissingLabel:
    """What one missing share says."""

    label: Label
    measure: Measure
    subject: str
    """What the measure is the missing share of."""
    reason: str = ""
    """Why it is inconclusive."""


def judge(missing: Measure, remedy: str = MORE_TOKENS) -> tuple[Label, str]:
    """The label of a missing share by its interval alone, and the reason where it is inconclusive."""
    if missing.value is None or missing.ci is None:
        return "INCONCLUSIVE", missing.reason or "no interval"
    low, high = missing.ci
    if high < WEAK_BELOW:
        return "INCONCLUSIVE", f"the missing share lies below {WEAK_BELOW:g}, [{low:.2f}, {high:.2f}]: {WEAK}"
    if high < VISIBLE_BELOW:
        return "VISIBLE", ""
    if low > NOT_VISIBLE_ABOVE:
        return "NOT VISIBLE", ""
    if PARTLY_WITHIN[0] < low and high < PARTLY_WITHIN[1]:
        return "PARTLY VISIBLE", ""
    return (
        "INCONCLUSIVE",
        f"the interval of the missing share, [{low:.2f}, {high:.2f}], is too wide: {remedy}",
    )


def judge_missing(leaf: Figures) -> MissingLabel:
    """M; where the deltas have too few directions for it, M without the three largest coordinates; where
    nothing but a constant shift has structure, the missing share of that shift. Of several seeds, their mean,
    by the interval that holds the variance between them.
    """
    names = {CHANGE: "missing_share", TRIMMED: "missing_share_no_top3"}
    candidates = [(subject, leaf.over_seeds(name)) for subject, name in names.items()]
    share = leaf.get("mean_share")
    constant = share.value is not None and (share.ci or (share.value,))[0] >= MOSTLY_CONSTANT
    if constant and share.value is not None and _without_structure(leaf):
        text = f"the constant shift ({share.value:.0%} of the change)"
        candidates.append((text, leaf.get("mean_missing_share")))
    subject, measure = next(((s, m) for s, m in candidates if m.value is not None), candidates[0])
    label, reason = judge(measure, _remedy(measure, leaf.get(names.get(subject, "mean_missing_share"))))
    return MissingLabel(label, measure, subject, reason)


def judge_geometry(leaf: Figures, texts: Mapping[str, Measure] | None = None) -> MissingLabel:
    """M, whose label counts only where M_p has the same: M moves with what is dense, M_p with absorption.

    Args:
        texts: M of each text by itself; where two lie apart, all together have no label.
    """
    answer, pooled = judge_missing(leaf), leaf.get("pooled_missing_share")
    if answer.subject == CHANGE and (two := apart(texts or {})):
        text = f"M of {two[0]} and of {two[1]} lie apart: read each by itself"
        return MissingLabel("INCONCLUSIVE", answer.measure, answer.subject, text)
    other, why = judge(pooled)
    if answer.label in ("INCONCLUSIVE", other):
        return answer
    text = why if pooled.value is None else f"the pooled missing share is {pooled:.2f}, {other}"
    return MissingLabel(
        "INCONCLUSIVE", answer.measure, answer.subject, f"M alone says {answer.label}, but {text}"
    )


def apart(texts: Mapping[str, Measure]) -> tuple[str, str] | None:
    """Finds two texts whose intervals of M do not meet."""
    known = {name: m.ci for name, m in texts.items() if m.ci is not None}
    for (one, (low, high)), (other, (lower, higher)) in combinations(known.items(), 2):
        if low > higher or lower > high:
            return one, other
    return None


def reached(leaf: Figures) -> Measure:
    """Places M between 1 and the positive control's: the share of what this reference can see at best."""
    missing, planted = leaf.over_seeds("missing_share"), leaf.get("missing_share_positive_control")
    if missing.value is None or planted.value is None:
        return undefined(missing.reason if missing.value is None else planted.reason)
    if planted.value > 1 - MIN_REACH:
        return undefined(
            f"even of a change made of base latents the reference misses {planted:.2f}: it is too weak"
        )
    whole = 1 - planted.value
    reach = Measure((1 - missing.value) / whole, n=missing.n)
    return reach.within(*((1 - x) / whole for x in reversed(missing.ci))) if missing.ci else reach  # type: ignore[misc]


MIN_REACH = 0.2
"""What the reference must see of a change made of base latents, for a place between that and nothing."""


def _without_structure(leaf: Figures) -> bool:
    """Whether M is undefined because there is nothing to miss; where too little training or unlike sizes are
    why, much may be missed."""
    firings, directions = leaf.get("firings_per_latent").value, leaf.get("delta_participation_ratio").value
    if firings is not None and firings < MIN_FIRINGS:
        return False
    structure = leaf.over_seeds("structure_delta")
    few = directions is not None and directions < MIN_PARTICIPATION
    return few or structure.value is None or structure.ci is None or structure.ci[0] < MIN_STRUCTURE


def _remedy(judged: Measure, of_one: Measure) -> str:
    """What would narrow the interval at least cost: seeds, where one seed's own is much narrower."""
    if (
        judged.ci is None
        or of_one.ci is None
        or judged.ci[1] - judged.ci[0] <= SEEDS_WIDEN * (of_one.ci[1] - of_one.ci[0])
    ):
        return MORE_TOKENS
    return MORE_SEEDS
