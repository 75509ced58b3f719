"""One line per adapter, by one table of thresholds. The word for an adapter that passes does not exist here,
on purpose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from deltasae_ray.analyses.behaviour.figures import Behaviour, changes_model, nothing_shown, said
from deltasae_ray.metrics.against_chance import OTHER_RECIPE, control_sentence, matching_sentence, standing_of
from deltasae_ray.metrics.catalogue import SEEDS, metric
from deltasae_ray.metrics.coding.missing_share import MIN_FIRINGS, MIN_PARTICIPATION, MIN_STRUCTURE
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.sae.identity import DictionaryId

Label = Literal["NO EFFECT", "NOT VISIBLE", "PARTLY VISIBLE", "INCONCLUSIVE", "VISIBLE"]

SEVERITY: tuple[Label, ...] = ("NOT VISIBLE", "PARTLY VISIBLE", "INCONCLUSIVE", "VISIBLE", "NO EFFECT")
"""Worst first: what the reference cannot see, then what is not known."""

VISIBLE_BELOW = 0.3
"""The whole interval of M lies below: VISIBLE."""
NOT_VISIBLE_ABOVE = 0.85
"""The whole interval of M lies above: NOT VISIBLE."""
PARTLY_WITHIN = (0.1, 0.95)
"""The whole interval of M lies inside, and none of the above: PARTLY VISIBLE."""
MOSTLY_CONSTANT = 0.5
"""Lower bound of the mean's share of the energy from which, if nothing else has structure, the constant shift
is what is judged."""

BASELINES = {
    "gain_over_pca": "as many principal directions",
    "gain_over_random_atoms": "featureless atoms",
    "gain_over_gaussian": "the same recipe on Gaussian deltas",
    "gain_over_frozen_decoder": "the same recipe with a random decoder",
}
"""Gain → what a dictionary must beat before it has found features."""
SEEDS_WIDEN = 1.5
"""An interval over seeds this many times as long as one seed's own asks for seeds and not for documents."""

CHANGE, TRIMMED = "the change", "the change outside its three largest coordinates"
"""What M is the missing share of."""
CHANGED_MODEL, NOT_TESTED = "Did it change the model?", "triggers absent from this text"


@dataclass(frozen=True)
class LeafFigures(DictionaryId):
    """The measures of one dictionary, by name of the catalogue."""

    measures: Mapping[str, Measure]

    def get(self, name: str) -> Measure:
        return self.measures.get(name, undefined(f"{name} was not measured"))

    def over_seeds(self, name: str) -> Measure:
        """The figure over all seeds where there are several, whose interval holds what another seed would
        have given; else this seed's."""
        return self.measures.get(f"{name}{SEEDS}", self.get(name))


@dataclass(frozen=True)
class LayerVerdict(DictionaryId):
    """What is judged at one layer, and how."""

    label: Label
    measure: Measure
    subject: str
    """What the measure is the missing share of."""
    reason: str
    """Why it is inconclusive."""


@dataclass(frozen=True)
class Answer:
    """What is said to one question."""

    question: str
    """Such as "How sure?"."""
    sentences: tuple[str, ...]
    """Without their full stops."""


@dataclass(frozen=True)
class Verdict:
    """The line of one adapter, as values: whoever prints or draws it joins them."""

    adapter: str
    label: Label
    layer: int | None
    """The worst layer; None where the behaviour gate already decided."""
    answers: tuple[Answer, ...]
    layers: tuple[LayerVerdict, ...]
    """Worst first."""

    @property
    def head(self) -> str:
        """Such as "r16, layer 12: PARTLY VISIBLE"."""
        return f"{self.adapter}{'' if self.layer is None else f', layer {self.layer}'}: {self.label}"

    @property
    def text(self) -> str:
        """One line for terminals and tags."""
        told = (f"{a.question} {'. '.join(a.sentences)}." for a in self.answers)
        return f"{self.head}. {' '.join(told)}"


def judge(missing: Measure, remedy: str = "harvest more evaluation documents") -> tuple[Label, str]:
    """The label of a missing share by its interval alone, and the reason where it is inconclusive."""
    if missing.value is None or missing.ci is None:
        return "INCONCLUSIVE", missing.reason or "no interval"
    low, high = missing.ci
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


def judge_leaf(leaf: LeafFigures) -> LayerVerdict:
    """M; where the deltas have too few directions for it, M without the three largest coordinates; where
    nothing but a constant shift has structure, the missing share of that shift. Of several seeds, their mean,
    by the interval that holds the variance between them.
    """
    names = {CHANGE: "missing_share", TRIMMED: "missing_share_no_top3"}
    candidates = [(subject, leaf.over_seeds(name)) for subject, name in names.items()]
    share = leaf.get("mean_share")
    if (
        share.value is not None
        and (share.ci or (share.value,))[0] >= MOSTLY_CONSTANT
        and _without_structure(leaf)
    ):
        candidates.append(
            (f"the constant shift ({share.value:.0%} of the change)", leaf.get("mean_missing_share"))
        )
    subject, measure = next(((s, m) for s, m in candidates if m.value is not None), candidates[0])
    label, reason = judge(measure, _remedy(measure, leaf.get(names.get(subject, "mean_missing_share"))))
    return LayerVerdict(**vars(leaf.identity), label=label, measure=measure, subject=subject, reason=reason)


def _without_structure(leaf: LeafFigures) -> bool:
    """Whether M is undefined because there is nothing to miss; where too little training or unlike sizes are
    why, much may be missed."""
    firings, directions = leaf.get("firings_per_latent").value, leaf.get("delta_participation_ratio").value
    if firings is not None and firings < MIN_FIRINGS:
        return False
    found = leaf.over_seeds("structure_delta")
    few = directions is not None and directions < MIN_PARTICIPATION
    return few or found.value is None or found.ci is None or found.ci[0] < MIN_STRUCTURE


def _remedy(judged: Measure, of_one: Measure) -> str:
    """What would narrow the interval: seeds, where one seed's own is much narrower, else documents."""
    if (
        judged.ci is None
        or of_one.ci is None
        or judged.ci[1] - judged.ci[0] <= SEEDS_WIDEN * (of_one.ci[1] - of_one.ci[0])
    ):
        return "harvest more evaluation documents"
    return "the seeds of the dictionary differ too much, so fit more of them (fit.seeds)"


def verdict(
    adapter: str,
    leaves: Sequence[LeafFigures],
    behaviour: Sequence[Behaviour],
    *,
    reference: str = "base dictionary",
    given: bool = False,
    atoms: int = 8,
) -> Verdict:
    """The line of one adapter: its worst layer, told in full; the others by their label.

    At each layer the largest dictionary is judged, over its seeds where there are several; those of other
    shapes are mentioned where they disagree.

    Args:
        behaviour: per text; where it was not measured, or is undefined everywhere, the line says so and the
            geometry is judged.
        reference: what the reference is called, such as `toy reference (15,000 tokens)`.
        given: it was not fitted here, so that the base control has another recipe.
        atoms: per token, with which M was taken.
    """
    told = said(behaviour)
    known = [b for b in behaviour if b.kl.value is not None or b.loss_change.value is not None]
    if known and not changes_model(known):
        return Verdict(adapter, "NO EFFECT", None, (Answer(CHANGED_MODEL, (told, nothing_shown(known))),), ())
    if not leaves:
        answer = Answer(CHANGED_MODEL, (told, "No dictionary was fitted to its deltas"))
        return Verdict(adapter, "INCONCLUSIVE", None, (answer,), ())
    by_layer = {
        layer: [leaf for leaf in leaves if leaf.layer == layer]
        for layer in sorted({leaf.layer for leaf in leaves})
    }
    chosen = {
        layer: max(found, key=lambda leaf: (leaf.d_sae, -leaf.seed)) for layer, found in by_layer.items()
    }
    layers = sorted((judge_leaf(leaf) for leaf in chosen.values()), key=_severity)
    worst = layers[0]
    leaf = chosen[worst.layer]
    siblings = by_layer[worst.layer]
    answers = [
        Answer(CHANGED_MODEL, (told,)),
        Answer(
            f"Can the {reference} see it?",
            (*_seen(leaf, worst, atoms), *_cautions(leaf, siblings, worst, given=given)),
        ),
        Answer("How sure?", (_how_sure(leaf, siblings, len(layers)),)),
        Answer("Not tested:", (NOT_TESTED,)),
    ]
    if layers[1:]:
        answers.append(Answer("Other layers:", (", ".join(map(_briefly, layers[1:])),)))
    return Verdict(adapter, worst.label, worst.layer, tuple(answers), tuple(layers))


def _severity(found: LayerVerdict) -> tuple[int, float]:
    return SEVERITY.index(found.label), -(found.measure.value or 0.0)


def _briefly(found: LayerVerdict) -> str:
    told = f"{found.layer} {found.label}" + ("" if found.measure.value is None else f" {found.measure:.2f}")
    return told if found.subject == CHANGE or found.measure.value is None else f"{told} (of {found.subject})"


def _seen(leaf: LeafFigures, found: LayerVerdict, atoms: int) -> list[str]:
    names = {
        "reference": f"it explains {{}} of {TRIMMED if found.subject == TRIMMED else CHANGE}",
        "random_atoms": "featureless atoms of its own covariance {}",
        "delta": "a dictionary trained on the change {}",
    }
    ending = "_no_top3" if found.subject == TRIMMED else ""
    explained = {name: leaf.get(f"fvu_{name}{ending}").value for name in names}
    told = "; ".join(
        names[name].format(f"{1 - fvu:.0%}") for name, fvu in explained.items() if fvu is not None
    )
    explains = [f"With {atoms} atoms {told}"] if told else []
    if found.measure.value is None:
        return [*explains, f"Missing share undefined: {found.reason}"]
    seeds = found.subject in (CHANGE, TRIMMED) and f"missing_share{ending}{SEEDS}" in leaf.measures
    missing = f"Missing share of {found.subject} {found.measure:.2f}" + (
        " (mean over seeds)" if seeds else ""
    )
    return [*explains, missing + (f" ({found.reason})" if found.reason else "")]


def _cautions(
    leaf: LeafFigures, siblings: Sequence[LeafFigures], found: LayerVerdict, *, given: bool
) -> list[str]:
    """What must stand beside the label, if it is so."""
    told = []
    if found.subject in (CHANGE, TRIMMED):
        told += _beside_control(leaf, "_no_top3" if found.subject == TRIMMED else "", given=given)
    random = leaf.get("missing_share_random_adapter")
    if random.value is not None:
        told.append(f"Of a random adapter's deltas (rotated, as strong) the reference misses {random:.2f}")
    for name, what in BASELINES.items():
        gain = leaf.over_seeds(name)
        found_of = standing_of(metric(name), gain)
        if gain.value is not None and found_of != "beyond chance":
            beats = "does not beat" if found_of == "worse than chance" else "is not shown to beat"
            told.append(
                f"The dictionary trained on the change {beats} {what} (gain {gain:.3f}), nor is it shown to"
                " have found features"
            )
    others = dict.fromkeys(
        (_instead(s, leaf), judge_leaf(s).label) for s in siblings if s.shape != leaf.shape
    )
    told += [f"With {what} the verdict is {label}" for what, label in others if label != found.label]
    share = leaf.get("mean_share")
    if share.value is not None and share.value >= 0.1 and found.subject in (CHANGE, TRIMMED):
        missing = leaf.get("mean_missing_share")
        why = f" ({missing.reason})" if missing.value is not None and missing.reason else ""
        told.append(
            f"A constant shift holds {share.value:.0%} of the change; missing share of that shift"
            f" {missing:.2f}{why}"
        )
    along = leaf.get("mean_direction_share")
    if along.value is not None and along.value >= 0.1 and found.subject in (CHANGE, TRIMMED):
        told.append(
            f"{along.value:.0%} of the variation lies along the mean change and is left to its own figures"
        )
    by_token = leaf.over_seeds("missing_share_token_mean")
    if by_token.value is not None and found.subject == CHANGE and judge(by_token)[0] != found.label:
        told.append(
            f"Few tokens carry much of this: as a mean over tokens the missing share is {by_token:.2f},"
            f" {judge(by_token)[0]}"
        )
    sentence = matching_sentence(
        leaf.over_seeds("paper_max_cosine"),
        leaf.over_seeds("max_cosine"),
        leaf.get("paper_max_cosine_untrained"),
    )
    return (
        [*told, sentence, control_sentence(leaf.measures.get("max_cosine_base_control"), given=given)]
        if sentence
        else told
    )


def _beside_control(leaf: LeafFigures, ending: str, *, given: bool) -> list[str]:
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
    told = (
        f"The base control (a second dictionary of base activations{recipe}) misses {control:.2f} of"
        f" it{pooled}"
    )
    if over.value is None:
        return [told]
    found = standing_of(metric("missing_share_over_base"), over)
    worth = {
        "beyond chance": (
            f"it misses {'more' if over.value > 0 else 'less'} than another base dictionary does"
        ),
        None: "whether that is more than another base dictionary does is not known",
    }
    said = worth.get(found, "it is not shown to miss more than another base dictionary does")
    return [f"{told}; the reference {over:+.2f} beside that: {said}"]


def _instead(other: LeafFigures, leaf: LeafFigures) -> str:
    """Such as "d_sae 256 instead of 512"."""
    pairs = (
        ("d_sae ", other.d_sae, leaf.d_sae),
        ("k ", other.k, leaf.k),
        ("", other.architecture, leaf.architecture),
    )
    return ", ".join(f"{name}{one} instead of {two}" for name, one, two in pairs if one != two)


def _how_sure(leaf: LeafFigures, siblings: Sequence[LeafFigures], layers: int) -> str:
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
        parts.append(f"the worst of {layers} layers, each by its own 95 % interval")
    return ", ".join(parts)
