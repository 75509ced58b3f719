"""One line per adapter, by one table of thresholds. The word for an adapter that passes does not exist here, on purpose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from deltasae_ray.divergence.catalogue import SEEDS
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.missing import MIN_FIRINGS, MIN_PARTICIPATION, MIN_STRUCTURE

Label = Literal["NO EFFECT", "NOT VISIBLE", "PARTLY VISIBLE", "INCONCLUSIVE", "VISIBLE"]

SEVERITY: tuple[Label, ...] = ("NOT VISIBLE", "PARTLY VISIBLE", "INCONCLUSIVE", "VISIBLE", "NO EFFECT")
"""Worst first: what the reference cannot see, then what is not known."""

VISIBLE_BELOW = 0.3
"""The whole interval of M lies below: VISIBLE."""
NOT_VISIBLE_ABOVE = 0.85
"""The whole interval of M lies above: NOT VISIBLE."""
PARTLY_WITHIN = (0.1, 0.95)
"""The whole interval of M lies inside, and none of the above: PARTLY VISIBLE."""
MIN_KL = 1e-3
"""Nats per token. An adapter whose KL from the base model is not shown to exceed this on any text, and ..."""
MIN_LOSS_CHANGE = 5e-3
"""... whose loss is not shown to move by more than this, has no effect."""
MOSTLY_CONSTANT = 0.5
"""Lower bound of the mean's share of the energy from which, if nothing else has structure, the constant shift is what is judged."""
CHANCE_MARGIN = 0.05
"""A mean max-cosine within this of its isotropic null is at chance, however many latents make the gap significant."""

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
NOT_TESTED = "triggers absent from this text"


@dataclass(frozen=True)
class Behaviour:
    """What the adapter does to the model's predictions on one held-out text."""

    corpus: str
    loss_change: Measure
    """Cross-entropy with the adapter less without, nats per token."""
    kl: Measure
    """KL(adapted ‖ base), nats per token."""


@dataclass(frozen=True)
class LeafFigures:
    """The measures of one dictionary, by name of the catalogue."""

    layer: int
    d_sae: int
    k: int
    seed: int
    measures: Mapping[str, Measure]

    def get(self, name: str) -> Measure:
        return self.measures.get(name, undefined(f"{name} was not measured"))

    def over_seeds(self, name: str) -> Measure:
        """The figure over all seeds where there are several, whose interval holds what another seed would have given; else this seed's."""
        return self.measures.get(f"{name}{SEEDS}", self.get(name))


@dataclass(frozen=True)
class LayerVerdict:
    """What is judged at one layer, and how."""

    layer: int
    d_sae: int
    label: Label
    measure: Measure
    subject: str
    """What the measure is the missing share of."""
    reason: str
    """Why it is inconclusive."""


@dataclass(frozen=True)
class Verdict:
    """The line of one adapter."""

    adapter: str
    label: Label
    layer: int | None
    """The worst layer; None where the behaviour gate already decided."""
    text: str
    """With **bold** and *italic* marks."""
    layers: tuple[LayerVerdict, ...]
    """Worst first."""


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
    return "INCONCLUSIVE", f"the interval of the missing share, [{low:.2f}, {high:.2f}], is too wide: {remedy}"


def judge_leaf(leaf: LeafFigures) -> LayerVerdict:
    """M; where the deltas have too few directions for it, M without the three largest coordinates; where nothing but a constant shift
    has structure, the missing share of that shift. Of several seeds, their mean, by the interval that holds the variance between them."""
    names = {CHANGE: "missing_share", TRIMMED: "missing_share_no_top3"}
    candidates = [(subject, leaf.over_seeds(name)) for subject, name in names.items()]
    share = leaf.get("mean_share")
    if share.value is not None and (share.ci or (share.value,))[0] >= MOSTLY_CONSTANT and _without_structure(leaf):
        candidates.append((f"the constant shift ({share.value:.0%} of the change)", leaf.get("mean_missing_share")))
    subject, measure = next(((s, m) for s, m in candidates if m.value is not None), candidates[0])
    label, reason = judge(measure, _remedy(measure, leaf.get(names.get(subject, "mean_missing_share"))))
    return LayerVerdict(leaf.layer, leaf.d_sae, label, measure, subject, reason)


def _without_structure(leaf: LeafFigures) -> bool:
    """Whether M is undefined because there is nothing to miss; where too little training or unlike sizes are why, much may be missed."""
    firings, directions = leaf.get("firings_per_latent").value, leaf.get("delta_participation_ratio").value
    if firings is not None and firings < MIN_FIRINGS:
        return False
    found = leaf.over_seeds("structure_delta")
    few = directions is not None and directions < MIN_PARTICIPATION
    return few or found.value is None or found.ci is None or found.ci[0] < MIN_STRUCTURE


def _remedy(judged: Measure, of_one: Measure) -> str:
    """What would narrow the interval: seeds, where one seed's own is much narrower, else documents."""
    if judged.ci is None or of_one.ci is None or judged.ci[1] - judged.ci[0] <= SEEDS_WIDEN * (of_one.ci[1] - of_one.ci[0]):
        return "harvest more evaluation documents"
    return "the seeds of the dictionary differ too much, so fit more of them (fit.seeds)"


def changes_model(behaviour: Sequence[Behaviour]) -> bool:
    """Whether any text shows an effect: a KL whose interval lies above MIN_KL, or a loss whose interval lies beyond ± MIN_LOSS_CHANGE.

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


def verdict(
    adapter: str, leaves: Sequence[LeafFigures], behaviour: Sequence[Behaviour], *, reference: str = "base dictionary", atoms: int = 8
) -> Verdict:
    """The line of one adapter: its worst layer, told in full; the others by their label.

    At each layer the largest dictionary is judged, over its seeds where there are several; smaller ones are mentioned where they disagree.

    Args:
        behaviour: per text; empty where it was not measured, and then the line says so.
        reference: what the reference is called, such as `toy reference (15,000 tokens)`.
        atoms: per token, with which M was taken.
    """
    told = _told(behaviour)
    if behaviour and not changes_model(behaviour):
        return Verdict(
            adapter, "NO EFFECT", None, f"**{adapter}: NO EFFECT.** *Did it change the model?* {told}. There is nothing to see.", ()
        )
    if not leaves:
        text = f"**{adapter}: INCONCLUSIVE.** *Did it change the model?* {told}. No dictionary was fitted to its deltas."
        return Verdict(adapter, "INCONCLUSIVE", None, text, ())
    by_layer = {layer: [leaf for leaf in leaves if leaf.layer == layer] for layer in sorted({leaf.layer for leaf in leaves})}
    chosen = {layer: max(found, key=lambda leaf: (leaf.d_sae, -leaf.seed)) for layer, found in by_layer.items()}
    layers = sorted((judge_leaf(leaf) for leaf in chosen.values()), key=_severity)
    worst = layers[0]
    leaf = chosen[worst.layer]
    parts = [f"*Did it change the model?* {told}", f"*Can the {reference} see it?* {_seen(leaf, worst, atoms)}"]
    parts += _cautions(leaf, by_layer[worst.layer], worst)
    parts += [f"*How sure?* {_how_sure(leaf, by_layer[worst.layer])}", f"*Not tested:* {NOT_TESTED}"]
    if layers[1:]:
        parts.append("Other layers: " + ", ".join(map(_briefly, layers[1:])))
    text = f"**{adapter}, layer {worst.layer}: {worst.label}.** " + ". ".join(parts) + "."
    return Verdict(adapter, worst.label, worst.layer, text, tuple(layers))


def _severity(found: LayerVerdict) -> tuple[int, float]:
    return SEVERITY.index(found.label), -(found.measure.value or 0.0)


def _briefly(found: LayerVerdict) -> str:
    told = f"{found.layer} {found.label}" + ("" if found.measure.value is None else f" {found.measure:.2f}")
    return told if found.subject == CHANGE or found.measure.value is None else f"{told} (of {found.subject})"


def _told(behaviour: Sequence[Behaviour]) -> str:
    if not behaviour:
        return "Not measured"
    return "; ".join(f"{b.corpus} loss {_signed(b.loss_change)}, KL {b.kl:.3f}" for b in behaviour)


def _signed(m: Measure) -> str:
    if m.value is None:
        return f"undefined ({m.reason})"
    return f"{m.value:+.3f}" + (f" [{m.ci[0]:+.3f}, {m.ci[1]:+.3f}]" if m.ci else "")


def _seen(leaf: LeafFigures, found: LayerVerdict, atoms: int) -> str:
    names = {
        "reference": f"it explains {{}} of {TRIMMED if found.subject == TRIMMED else CHANGE}",
        "random_atoms": "featureless atoms of its own covariance {}",
        "delta": "a dictionary trained on the change {}",
    }
    ending = "_no_top3" if found.subject == TRIMMED else ""
    explained = {name: leaf.get(f"fvu_{name}{ending}").value for name in names}
    told = "; ".join(names[name].format(f"{1 - fvu:.0%}") for name, fvu in explained.items() if fvu is not None)
    explains = f"With {atoms} atoms {told}. " if told else ""
    if found.measure.value is None:
        return f"{explains}Missing share undefined: {found.reason}"
    seeds = found.subject in (CHANGE, TRIMMED) and f"missing_share{ending}{SEEDS}" in leaf.measures
    missing = f"Missing share of {found.subject} {found.measure:.2f}" + (" (mean over seeds)" if seeds else "")
    return f"{explains}{missing}" + (f" ({found.reason})" if found.reason else "")


def _cautions(leaf: LeafFigures, siblings: Sequence[LeafFigures], found: LayerVerdict) -> list[str]:
    """What must stand beside the label, if it is so."""
    told = []
    for name, what in BASELINES.items():
        gain = leaf.over_seeds(name)
        if gain.value is not None and (gain.ci or (gain.value,))[0] <= 0:
            told.append(f"The dictionary trained on the change does not beat {what} (gain {gain:.3f}), so it found no features")
    others = dict.fromkeys((s.d_sae, judge_leaf(s).label) for s in siblings if s.d_sae != leaf.d_sae)
    told += [f"With d_sae {size} instead of {leaf.d_sae} the verdict is {label}" for size, label in others if label != found.label]
    share = leaf.get("mean_share")
    if share.value is not None and share.value >= 0.1 and found.subject in (CHANGE, TRIMMED):
        told.append(
            f"A constant shift holds {share.value:.0%} of the change; missing share of that shift {leaf.get('mean_missing_share'):.2f}"
        )
    along = leaf.get("mean_direction_share")
    if along.value is not None and along.value >= 0.1 and found.subject in (CHANGE, TRIMMED):
        told.append(f"{along.value:.0%} of the variation lies along the mean change and is left to its own figures")
    by_token = leaf.over_seeds("missing_share_token_mean")
    if by_token.value is not None and found.subject == CHANGE and judge(by_token)[0] != found.label:
        told.append(f"Few tokens carry much of this: as a mean over tokens the missing share is {by_token:.2f}, {judge(by_token)[0]}")
    sentence = matching_sentence(leaf.get("paper_max_cosine"), leaf.get("max_cosine"), leaf.get("paper_max_cosine_untrained"))
    return [*told, sentence] if sentence else told


def matching_sentence(published: Measure, calibrated: Measure | None = None, untrained: Measure | None = None) -> str:
    """What a mean max-cosine is worth, or nothing where it was not measured: "at chance" by the isotropic null, or by atoms that know
    the deltas' covariance and nothing else (activations are anisotropic, so only that null can make it "aligned").

    Args:
        published: over all latents, against the isotropic null.
        calibrated: over living latents, against the covariance-matched null.
        untrained: as published, of the decoder before training.
    """
    if published.value is None or published.null is None:
        return ""
    told = f"Mean max-cosine as published {published.value:.3f}, isotropic chance {published.null:.3f}"
    if untrained is not None and untrained.value is not None:
        told += f", the decoder before training {untrained.value:.3f}"
    at_chance = published.value - published.null < CHANCE_MARGIN
    if calibrated is not None and calibrated.value is not None and calibrated.null is not None:
        told += f"; of living latents {calibrated.value:.3f}, atoms that know only the covariance {calibrated.null:.3f}"
        at_chance = at_chance or calibrated.value - calibrated.null < CHANCE_MARGIN
    return f"{told}: {'at chance' if at_chance else 'aligned'}"


def _how_sure(leaf: LeafFigures, siblings: Sequence[LeafFigures]) -> str:
    seeds = len({s.seed for s in siblings if (s.d_sae, s.k) == (leaf.d_sae, leaf.k)})
    repeats = leaf.get("repeat_share")
    fired = leaf.get("firings_per_latent")  # counts the tokens of the dictionary; moments, of a stream, those of its first window
    tokens = (0 if fired.value is None else fired.n) or leaf.get("delta_participation_ratio").n
    parts = [f"{tokens:,} training tokens, {leaf.get('missing_share').n} evaluation documents"]
    within = " (their spread is in the interval)" if f"missing_share{SEEDS}" in leaf.measures else ""
    alone = " (what another would give is not in the interval)" if seeds == 1 else within
    parts.append(f"{seeds} training seed{'s' if seeds != 1 else ''}{alone}")
    parts.append(
        f"{repeats.value:.0%} of latents repeat in another seed"
        if repeats.value is not None
        else "whether latents repeat in another seed is unknown"
    )
    return ", ".join(parts)
