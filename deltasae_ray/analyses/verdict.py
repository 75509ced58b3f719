"""One line per adapter, by the one rule of docs/visibility.md. The word for an adapter that passes does not
exist here, on purpose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from deltasae_ray.analyses.behaviour.figures import Behaviour, changes_model, describe_losses, nothing_shown
from deltasae_ray.analyses.geometry_figures import Figures, Label
from deltasae_ray.analyses.random_figures import against_random
from deltasae_ray.analyses.verdict_figures import (
    Against,
    describe_geometry,
    describe_sight,
    how_sure,
    what_next,
)
from deltasae_ray.analyses.visibility.figures import CellVisibility
from deltasae_ray.analyses.visibility.layer_figures import Sight, label
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.identity import DictionaryId

SEVERITY: tuple[Label, ...] = ("NOT VISIBLE", "INCONCLUSIVE", "PARTLY VISIBLE", "VISIBLE", "NO EFFECT")
"""What leads: a layer that the reference cannot see, then one of which nothing is known."""

CHANGED_MODEL, NOT_TESTED = "Did it change the model?", "triggers absent from this text"
UNMEASURED = Sight(CellVisibility.undefined("which latents are visible was not measured"))


@dataclass(frozen=True)
class LeafFigures(Figures):
    """The measures of one dictionary, and which of its latents the reference can see."""

    sight: Sight = field(default=UNMEASURED, kw_only=True)


@dataclass(frozen=True)
class LayerVerdict(DictionaryId):
    """What is judged at one layer, and how."""

    label: Label
    measure: Measure
    """f, the share of judged latents that are not visible; its interval holds over all layers at once."""
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
    """The layer that leads; None where the behaviour gate already decided."""
    answers: tuple[Answer, ...]
    layers: tuple[LayerVerdict, ...]
    """Worst first."""
    untold: tuple[str, ...] = ()
    """Figures by which the adapter is not told from random ones."""

    @property
    def head(self) -> str:
        """The verdict in a line, such as "r16, layer 12: PARTLY VISIBLE, not told from a random adapter by
        missing share"."""
        place = "" if self.layer is None else f", layer {self.layer}"
        beside = f", not told from a random adapter by {' and '.join(self.untold)}" if self.untold else ""
        return f"{self.adapter}{place}: {self.label}{beside}"

    @property
    def text(self) -> str:
        """One line for terminals and tags."""
        answers = (f"{a.question} {'. '.join(a.sentences)}." for a in self.answers)
        return f"{self.head}. {' '.join(answers)}"


def verdict(
    adapter: str,
    leaves: Sequence[LeafFigures],
    behaviour: Sequence[Behaviour],
    against: Against | None = None,
    writes: Sequence[str] = (),
) -> Verdict:
    """The line of one adapter: the layer that leads, told in full; the others by their label.

    At each layer the largest dictionary is judged; those of other shapes are mentioned where they disagree.

    Args:
        behaviour: per text; where it was not measured, or is undefined everywhere, the line says so and the
            latents are judged.
        against: what deltas are held against.
        writes: the leading directions of the adapter's weights, in words.
    """
    against = against or Against()
    behaviour_answer, untested = describe_losses(behaviour), Answer("Not tested:", (NOT_TESTED, *writes))
    known = [b for b in behaviour if b.kl.value is not None or b.loss_change.value is not None]
    if known and not changes_model(known):
        answers = (Answer(CHANGED_MODEL, (behaviour_answer, *nothing_shown(known))), untested)
        return Verdict(adapter, "NO EFFECT", None, answers, ())
    if not leaves:
        answer = Answer(CHANGED_MODEL, (behaviour_answer, "No dictionary was fitted to its deltas"))
        return Verdict(adapter, "INCONCLUSIVE", None, (answer, untested), ())
    by_layer = {
        layer: [leaf for leaf in leaves if leaf.layer == layer]
        for layer in sorted({leaf.layer for leaf in leaves})
    }
    chosen = {
        layer: max(at_layer, key=lambda leaf: (leaf.d_sae, -leaf.seed))
        for layer, at_layer in by_layer.items()
    }
    layers = sorted((judge_leaf(leaf, len(chosen)) for leaf in chosen.values()), key=_severity)
    worst, leaf = layers[0], chosen[layers[0].layer]
    siblings, compared = by_layer[worst.layer], against_random(leaf)
    seen = [
        *describe_sight(leaf.sight, worst.measure, worst.reason, against),
        *_other_shapes(siblings, leaf, worst, len(chosen)),
    ]
    random = tuple(map(str, compared)) or (
        "No random adapter stands beside it (diverge.controls=random_lora)",
    )
    answers = [
        Answer(CHANGED_MODEL, (behaviour_answer,)),
        Answer("Is it told from a random adapter of the same strength?", random),
        Answer(f"Can the {against.reference} see it?", tuple(seen)),
        Answer("And the whole change?", tuple(describe_geometry(leaf, leaf.sight, against))),
        Answer("How sure?", (how_sure(leaf, siblings, len(layers)),)),
        untested,
        Answer("What next?", (what_next(leaf.sight, worst.label, worst.reason),)),
    ]
    if layers[1:]:
        others = tuple(_briefly(at_layer, chosen[at_layer.layer].sight) for at_layer in layers[1:])
        answers.append(Answer("Other layers:", others))
    untold = tuple(c.called for c in compared if c.gap.value is not None and not c.differs)
    return Verdict(adapter, worst.label, worst.layer, tuple(answers), tuple(layers), untold)


def seeing(leaves: Sequence[LeafFigures], sights: Mapping[DictionaryId, Sight]) -> list[LeafFigures]:
    """Puts beside the figures of each dictionary which of its latents are visible, where that was decided."""
    return [replace(leaf, sight=sights.get(leaf.identity, leaf.sight)) for leaf in leaves]


def judge_leaf(leaf: LeafFigures, layers: int = 1) -> LayerVerdict:
    """Applies the rule to one dictionary.

    Args:
        layers: whose intervals are to hold at once.
    """
    word, share, reason = label(leaf.sight, layers)
    return LayerVerdict(**vars(leaf.identity), label=word, measure=share, reason=reason)


def _severity(of: LayerVerdict) -> tuple[int, float]:
    return SEVERITY.index(of.label), -(of.measure.value or 0.0)


def _briefly(of: LayerVerdict, sight: Sight) -> str:
    if of.measure.value is None:
        return f"{of.layer} {of.label} ({of.reason})"
    named = ", ".join(str(x.index) for x in sight.own.answer.named)
    return f"{of.layer} {of.label}, f {of.measure:.2f}" + (f", not visible {named}" if named else "")


def _other_shapes(
    siblings: Sequence[LeafFigures], leaf: LeafFigures, worst: LayerVerdict, layers: int
) -> list[str]:
    """Sentences on dictionaries of other shapes that say something else."""
    first = min(leaf.seed for leaf in siblings)
    others = {
        _instead(s, leaf): judge_leaf(s, layers).label
        for s in siblings
        if s.shape != leaf.shape and s.seed == first
    }
    return [f"With {what} it is {other}" for what, other in others.items() if other != worst.label]


def _instead(other: LeafFigures, leaf: LeafFigures) -> str:
    """Names what differs between two shapes, such as "d_sae 256 instead of 512"."""
    pairs = (
        ("d_sae ", other.d_sae, leaf.d_sae),
        ("k ", other.k, leaf.k),
        ("", other.architecture, leaf.architecture),
    )
    return ", ".join(f"{name}{one} instead of {two}" for name, one, two in pairs if one != two)
