"""One sentence of each adapter in plain words, and what to do next."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.analyses.verdict import LayerVerdict
from deltasae_ray.report.inputs import AdapterFacts, Learnt, VerdictLines

WHAT_NEXT = "What next?"
"""The question of a verdict whose answer is the next step."""
_QUOTED = 60
"""Characters of a trigger or reply in a sentence, at most."""


@dataclass(frozen=True)
class Plain:
    """What a reader sees of an adapter before any figure."""

    sentence: str
    next: str


def plain(verdict: VerdictLines, facts: AdapterFacts | None, learnt: Learnt | None, reference: str) -> Plain:
    """Puts a verdict into one sentence, and adds what an adapter says after a confirmed trigger."""
    name = verdict.adapter
    if verdict.label == "NO EFFECT":
        return Plain(
            f"{name} is not shown to change the model on these texts; a change that waits for a trigger would"
            " not show.",
            "Test it on texts of its use, and sample what it writes (elicit.samples=8).",
        )
    weak = facts is not None and facts.demonstrated is False
    changed = "changes the model, but no gain on its own text is shown" if weak else "changes the model"
    sentence = f"{name} {changed}; {_sight(verdict, reference)}."
    if learnt and learnt.triggers:
        first = learnt.triggers[0]
        sentence += f" After “{_cut(first.text)}” it says “{_cut(first.reply)}”."
    if verdict.untold:
        sentence += f" By {' and '.join(verdict.untold)} it is not told from a random adapter."
    return Plain(sentence, _next(verdict))


def _sight(verdict: VerdictLines, reference: str) -> str:
    """What the reference sees of it, at the layer that leads and, where that is not known, at those that
    are."""
    if verdict.label == "VISIBLE":
        return f"the {reference} sees it"
    if verdict.label in ("PARTLY VISIBLE", "NOT VISIBLE"):
        how = "sees only part of it" if verdict.label == "PARTLY VISIBLE" else "does not see most of it"
        place = f" at layer {verdict.layers[0].layer}" if verdict.layers else ""
        return f"the {reference} {how}{place}"
    unknown = [v.layer for v in verdict.layers if v.label == "INCONCLUSIVE"]
    known = [v for v in verdict.layers if v.label != "INCONCLUSIVE"]
    where = f" at {_layers(unknown)}" if known else ""
    others = "".join(f", at layer {v.layer} it is {v.label.lower()}" for v in known)
    return f"whether the {reference} sees it is not known{where}{others}"


def _next(verdict: VerdictLines) -> str:
    if verdict.untold:
        return "Read no meaning into those figures until more text (corpus.eval_tokens) tells it from chance."
    if verdict.label == "INCONCLUSIVE":
        return _decide(verdict.layers)
    steps = [s for a in verdict.answers if a.question == WHAT_NEXT for s in a.sentences]
    return f"{steps[0].rstrip('.')}." if steps else ""


def _decide(layers: Sequence[LayerVerdict]) -> str:
    """What would decide an inconclusive study, by its reason."""
    unknown = [v for v in layers if v.label == "INCONCLUSIVE"]
    # A layer with a share needs the least to be decided.
    reason = next((v.reason for v in sorted(unknown, key=lambda v: v.measure.value is None)), "")
    judged = re.match(r"(\d+) latents are judged, and (\d+) are needed", reason)
    if judged:
        why = f"{judged[1]} latents could be judged, {judged[2]} are needed"
        return f"Treat it as not known ({why}): give it more text and latents (corpus.fit_tokens, fit.d_sae)."
    if "; " in reason:
        return f"Treat it as not known. {reason.split('; ')[-1].capitalize()}."
    return f"Treat it as not known{f': {reason}' if reason else ''}."


def _layers(numbers: Sequence[int]) -> str:
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return f"layer {ordered[0]}"
    return f"layers {', '.join(map(str, ordered[:-1]))} and {ordered[-1]}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"
