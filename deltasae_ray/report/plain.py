"""One sentence of each adapter in plain words, and what to do next."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.analyses.verdict import LayerVerdict
from deltasae_ray.report.inputs import AdapterFacts, Learnt, VerdictLines

WHAT_NEXT = "What next?"
"""The question of a verdict whose answer is the next step."""
OF_LABELS = {
    "NOT VISIBLE": "not seen",
    "PARTLY VISIBLE": "seen in part",
    "VISIBLE": "seen",
    "INCONCLUSIVE": "inconclusive",
    "NO EFFECT": "without a shown change",
}
"""Label → how the study's line counts it, the worst first."""
_QUOTED = 60
"""Characters of a trigger or reply in a sentence, at most."""


@dataclass(frozen=True)
class Plain:
    """What a reader sees of an adapter, or of the study, before any figure."""

    sentence: str
    next: str


def plain(verdict: VerdictLines, facts: AdapterFacts | None, learnt: Learnt | None, reference: str) -> Plain:
    """Puts a verdict into one sentence, and adds what an adapter says after a confirmed trigger."""
    if verdict.label == "NO EFFECT":
        return Plain(
            "No change of the model is shown on these texts. One that waits for a trigger would not show.",
            "Test it on texts of its use, and sample what it writes (elicit.samples=8).",
        )
    weak = facts is not None and facts.demonstrated is False
    changed = "Changes the model, but no gain on its own text is shown" if weak else "Changes the model"
    sentence = f"{changed}; {_sight(verdict, reference)}."
    if learnt and learnt.triggers:
        first = learnt.triggers[0]
        sentence = f"After “{_cut(first.text)}” it says “{_cut(first.reply)}”. {sentence}"
    if verdict.untold:
        sentence += f" By {' and '.join(verdict.untold)} it is not told from a random adapter."
    return Plain(sentence, _next(verdict))


def of_study(adapters: Sequence[tuple[str, Plain]]) -> Plain | None:
    """The study in a line, and the next step that adapters share.

    Args:
        adapters: label and sentence of each.
    """
    if not adapters:
        return None
    labels = [label for label, _ in adapters]
    counted = [f"{labels.count(one)} {word}" for one, word in OF_LABELS.items() if one in labels]
    decided = [label for label in labels if label not in ("INCONCLUSIVE", "NO EFFECT")]
    if decided or "INCONCLUSIVE" not in labels:
        sentence = f"{len(labels)} adapter{'s' if len(labels) > 1 else ''}: {', '.join(counted)}."
    else:
        sentence = f"Nothing is decided yet: {' and '.join(counted)}."
    steps = Counter(one.next for label, one in adapters if label == "INCONCLUSIVE")
    shared = next((step for step, n in steps.most_common(1) if n > 1 or not decided), "")
    return Plain(sentence, shared)


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
    if verdict.label == "INCONCLUSIVE":
        return _decide(verdict.layers)
    if verdict.untold:
        return "Read no meaning into those figures until more text (corpus.eval_tokens) tells it from chance."
    steps = [s for a in verdict.answers if a.question == WHAT_NEXT for s in a.sentences]
    return f"{steps[0].rstrip('.')}." if steps else ""


def _decide(layers: Sequence[LayerVerdict]) -> str:
    """What would decide an inconclusive study, by its reason."""
    unknown = [v for v in layers if v.label == "INCONCLUSIVE"]
    # A layer with a share needs the least to be decided.
    reason = next((v.reason for v in sorted(unknown, key=lambda v: v.measure.value is None)), "")
    if "fit.seeds=2" in reason:
        return "Train every dictionary twice (fit.seeds=2): only latents that come back are judged."
    judged = re.match(r"(\d+) latents are judged, and (\d+) are needed", reason)
    if judged:
        why = f"{judged[1]} latents could be judged, {judged[2]} are needed"
        return f"Give it more text and latents (corpus.fit_tokens, fit.d_sae): {why}."
    if "; " in reason:
        return f"{_first_up(reason.split('; ')[-1])}."
    return f"Treat it as not known{f': {reason}' if reason else ''}."


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _layers(numbers: Sequence[int]) -> str:
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return f"layer {ordered[0]}"
    return f"layers {', '.join(map(str, ordered[:-1]))} and {ordered[-1]}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"
