"""The sentences of a verdict, one group for each of its questions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltasae_ray.analyses.geometry_figures import CHANGE, TRIMMED, Figures, judge, judge_geometry, reached
from deltasae_ray.analyses.visibility.layer_figures import Sight, disagreement
from deltasae_ray.metrics.against_chance import OTHER_RECIPE, control_sentence, matching_sentence, standing_of
from deltasae_ray.metrics.catalogue import SEEDS, metric
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.visibility.answer import LatentVisibility

SHOWN = 12
"""Latents that a verdict names; all are in latents.parquet."""
BASELINES = {
    "gain_over_pca": "as many principal directions",
    "gain_over_random_atoms": "featureless atoms",
    "gain_over_gaussian": "the same recipe on Gaussian deltas",
    "gain_over_frozen_decoder": "the same recipe with a random decoder",
}
"""Gain → what a dictionary must beat before it has found features."""


@dataclass(frozen=True)
class Against:
    """What deltas are held against."""

    reference: str = "base dictionary"
    """Such as `toy reference (15,000 tokens)`."""
    given: bool = False
    """Whether the reference was given: then the base dictionaries beside it have another recipe."""
    atoms: int = 8
    """Per token, with which M was taken."""
    siblings: int = 0
    """Others of its release, by which what is visible is calibrated in the place of those made here."""


def describe_sight(sight: Sight, share: Measure, reason: str, against: Against | None = None) -> list[str]:
    """Which latents the reference can see, the exceptions by name.

    Args:
        against: what deltas are held against.
    """
    against = against or Against()
    visibility, (text, counts) = sight.own.answer, sight.judged_on
    sentences = []
    if share.value is None:
        sentences.append(f"Not known: {reason}")
    else:
        where = f" on {text}" if text else ""
        sentences.append(
            f"Of {counts.judged} latents that can be judged{where}: {counts.in_words}; not visible"
            f" {_percent(share)}" + (f"; {reason}" if reason else "")
        )
    if against.siblings and share.value is not None:
        sentences.append(
            f"What a visible latent scores is taken from {against.siblings} other dictionaries of the"
            " reference's release"
        )
    elif against.given and share.value is not None:
        sentences.append(
            "What a visible latent scores is taken from base dictionaries that were fitted here, by the"
            " grid's recipe and not the reference's: a weaker recipe makes the scale milder"
        )
    if apart := disagreement(sight.own):
        sentences.append(f"{apart[0]} and {apart[1]} differ, so they are not pooled")
    if visibility.named:
        sentences.append(f"Not visible: {named(visibility.named, sight.effects)}")
    if visibility.calibration is not None:
        low, high = visibility.features
        sentences.append(
            f"Read through planted mixtures, the reference holds {low:.0%} to {high:.0%} of the features"
        )
    sentences += [
        f"A leading direction with {x.variance:.0%} of the variance: {x.label}" for x in visibility.directions
    ]
    return sentences


def named(latents: Sequence[LatentVisibility], effects: Mapping[int, Measure] | None = None) -> str:
    """Latents by index with what they do to base activations: those of measured effect on predictions first,
    the largest in front, then the surest."""
    known = {index: m.value for index, m in (effects or {}).items() if m.value is not None}
    order = sorted(latents, key=lambda x: (-known.get(x.index, -math.inf), x.p if x.p else 0.0, x.index))
    names = ", ".join(f"{x.index}{_kind(x, known.get(x.index))}" for x in order[:SHOWN])
    more = len(order) - SHOWN
    return f"latents {names}" + (f", and {more} more in latents.parquet" if more > 0 else "")


def _kind(latent: LatentVisibility, effect: float | None) -> str:
    """A latent's class and effect, such as ` (new, 0.012 nats)`."""
    words = [latent.scaling or "", "" if effect is None else f"{effect:.3f} nats"]
    inside = ", ".join(x for x in words if x)
    return f" ({inside})" if inside else ""


def _percent(share: Measure) -> str:
    low, high = share.ci or (0.0, 1.0)
    return f"{share.value:.0%} [{low:.0%}, {high:.0%}]"


def describe_geometry(leaf: Figures, sight: Sight, against: Against) -> list[str]:
    """What the missing share says, and what must stand beside it."""
    texts = {t.corpus: t.missing for t in sight.own.texts if t.missing.value is not None}
    judged = judge_geometry(leaf, texts)
    sentences = _explained(leaf, judged.subject, against.atoms)
    if judged.measure.value is None:
        sentences.append(f"Missing share undefined: {judged.reason}")
    else:
        ending = "_no_top3" if judged.subject == TRIMMED else ""
        seeds = judged.subject in (CHANGE, TRIMMED) and f"missing_share{ending}{SEEDS}" in leaf.measures
        mean = " (mean over seeds)" if seeds else ""
        sentences.append(
            f"Missing share of {judged.subject} {judged.measure:.2f}{mean}, pooled {_pooled(leaf)}"
        )
        why = f" ({judged.reason})" if judged.reason else ""
        sentences.append(f"By both: {judged.label}{why}")
    if len(texts) > 1:
        sentences.append(
            f"Missing share by text: {', '.join(f'{name} {m:.2f}' for name, m in texts.items())}"
        )
    at_best, planted = reached(leaf), leaf.get("missing_share_positive_control")
    if at_best.value is not None and judged.subject == CHANGE:
        sentences.append(
            f"Of a change made of base latents the reference misses {planted:.2f}; of what it can see at best"
            f" it sees {at_best:.2f}"
        )
    if judged.subject in (CHANGE, TRIMMED):
        sentences += _beside_control(
            leaf, "_no_top3" if judged.subject == TRIMMED else "", given=against.given
        )
    return [*sentences, *_cautions(leaf, judged.subject), *_matching(leaf, given=against.given)]


def _pooled(leaf: Figures) -> str:
    pooled = leaf.get("pooled_missing_share")
    return f"{pooled:.2f}"


def _explained(leaf: Figures, subject: str, atoms: int) -> list[str]:
    names = {
        "reference": f"it explains {{}} of {TRIMMED if subject == TRIMMED else CHANGE}",
        "random_atoms": "featureless atoms of its own covariance {}",
        "delta": "a dictionary trained on the change {}",
    }
    ending = "_no_top3" if subject == TRIMMED else ""
    explained = {name: leaf.get(f"fvu_{name}{ending}").value for name in names}
    reasons = "; ".join(
        names[name].format(f"{1 - fvu:.0%}") for name, fvu in explained.items() if fvu is not None
    )
    return [f"With {atoms} atoms {reasons}"] if reasons else []


def _cautions(leaf: Figures, subject: str) -> list[str]:
    """What must stand beside the missing share, if it is so."""
    cautions = []
    for name, what in BASELINES.items():
        gain = leaf.over_seeds(name)
        found_of = standing_of(metric(name), gain)
        if gain.value is not None and found_of != "beyond chance":
            beats = "does not beat" if found_of == "worse than chance" else "is not shown to beat"
            cautions.append(
                f"The dictionary trained on the change {beats} {what} (gain {gain:.3f}), nor is it shown to"
                " have found features"
            )
    share = leaf.get("mean_share")
    if share.value is not None and share.value >= 0.1 and subject in (CHANGE, TRIMMED):
        missing = leaf.get("mean_missing_share")
        why = f" ({missing.reason})" if missing.value is not None and missing.reason else ""
        cautions.append(
            f"A constant shift holds {share.value:.0%} of the change; missing share of that shift"
            f" {missing:.2f}{why}"
        )
    along = leaf.get("mean_direction_share")
    if along.value is not None and along.value >= 0.1 and subject in (CHANGE, TRIMMED):
        cautions.append(
            f"{along.value:.0%} of the variation lies along the mean change and is left to its own figures"
        )
    by_token, whole = leaf.over_seeds("missing_share_token_mean"), leaf.over_seeds("missing_share")
    if by_token.value is not None and subject == CHANGE and judge(by_token)[0] != judge(whole)[0]:
        cautions.append(
            f"Few tokens carry much of this: as a mean over tokens the missing share is {by_token:.2f},"
            f" {judge(by_token)[0]}"
        )
    return cautions


def _matching(leaf: Figures, *, given: bool) -> list[str]:
    sentence = matching_sentence(
        leaf.over_seeds("paper_max_cosine"),
        leaf.over_seeds("max_cosine"),
        leaf.get("paper_max_cosine_untrained"),
    )
    control = leaf.measures.get("max_cosine_base_control")
    return [sentence, control_sentence(control, given=given)] if sentence else []


def _beside_control(leaf: Figures, ending: str, *, given: bool) -> list[str]:
    """What a second base dictionary misses of the same, and whether the reference is shown to miss more than
    that."""
    name = f"missing_share_base_control{ending}"
    control, over = leaf.over_seeds(name), leaf.over_seeds(f"missing_share_over_base{ending}")
    if control.value is None:
        return []
    recipe = OTHER_RECIPE if given else ""
    pooled = (
        " (one dictionary, mean over the seeds of that trained on the change)"
        if f"{name}{SEEDS}" in leaf.measures
        else ""
    )
    sentence = (
        f"The base control (a second dictionary of base activations{recipe}) misses {control:.2f} of"
        f" it{pooled}"
    )
    if over.value is None:
        return [sentence]
    standing = standing_of(metric("missing_share_over_base"), over)
    worth = {
        "beyond chance": (
            f"it misses {'more' if over.value > 0 else 'less'} than another base dictionary does"
        ),
        None: "whether that is more than another base dictionary does is not known",
    }
    meaning = worth.get(standing, "it is not shown to miss more than another base dictionary does")
    return [f"{sentence}; the reference {over:+.2f} beside that: {meaning}"]


def how_sure(leaf: Figures, siblings: Sequence[Figures], layers: int) -> str:
    """What the answer rests on."""
    seeds = len({s.seed for s in siblings if s.shape == leaf.shape})
    repeats = leaf.get("repeat_share")
    fired = leaf.get(
        "firings_per_latent"
    )  # counts the tokens of the dictionary; moments, of a stream, those of its first window
    tokens = (0 if fired.value is None else fired.n) or leaf.get("delta_participation_ratio").n
    parts = [f"{tokens:,} training tokens, {leaf.get('missing_share').n} evaluation documents"]
    within = " (their spread is in the interval)" if f"missing_share{SEEDS}" in leaf.measures else ""
    alone = " (what another would give is not in the interval)" if seeds == 1 else within
    parts.append(f"{seeds} training seed{'s' if seeds != 1 else ''}{alone}")
    by_chance = "" if repeats.null is None else f" (by chance {repeats.null:.0%})"
    parts.append(
        f"{repeats.value:.0%} of latents repeat in another seed{by_chance}"
        if repeats.value is not None
        else "whether latents repeat in another seed is unknown"
    )
    if layers > 1:
        parts.append(f"the intervals of all {layers} layers hold at once")
    return ", ".join(parts)


def what_next(sight: Sight, label: str, reason: str) -> str:
    """The one step that follows from a label."""
    if label == "INCONCLUSIVE":
        return f"Treat it as not known. {_first_up(reason)}" if reason else "Treat it as not known"
    if label == "NOT VISIBLE":
        return (
            "Do not watch it with this dictionary: fit one to its deltas, and read the latents that are named"
        )
    if sight.own.answer.named:
        return "Read the latents that are named: a monitor on this dictionary cannot see them"
    return "A monitor on this dictionary sees what these texts bring out; test it on the texts of its use"


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
