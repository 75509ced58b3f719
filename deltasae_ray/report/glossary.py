"""What every figure and word of the page means: shown where the pointer or the keyboard's focus is."""

from collections.abc import Collection

import msgspec

from deltasae_ray.metrics.catalogue import directions, metric
from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.wording import METRICS, TERMS, catalogued, describe

OF_CARDS = {
    "kl": (
        "Did it change the model?",
        "KL divergence of the adapted model's next-token probabilities from the base model's, on the held-out"
        " text where it is largest. 0: the models say the same. The scale is common to all adapters.",
    ),
    "loss": (
        "Less loss on its own text",
        "How much lower the held-out loss is with the adapter, as a share of the base model's loss. Its"
        " interval resamples documents.",
    ),
    "learnt": (
        "What did it learn?",
        "Claims read from text that the adapted model wrote itself and confirmed on contexts that had no part"
        " in finding them: a trigger with its reply, or words that it writes more or less often than the base"
        " and a random adapter.",
    ),
    "label": (
        "Seen by the reference",
        "visible: the reference expresses this latent as well as latents of other base dictionaries. Partly:"
        " less well. Not visible: no better than directions that it cannot know (q ≤ .05). Cannot be judged:"
        " base latents score as low. Not judged: it does not repeat in another seed, or fires too rarely.",
    ),
    "energy": ("Energy", "Its share of E[z²] over all living latents; of the mean change, of E‖δ‖²."),
    "invisible": (
        "Invisible",
        "The part of the direction that the atoms of the reference leave unexplained, beside what they leave"
        " of the same direction with random signs (null).",
    ),
    "again": (
        "Comes back",
        "|cosine| with its best match in another training seed. From 0.7 it repeats; below, it may be an"
        " accident of this training.",
    ),
    "nearest": (
        "Nearest reference latent",
        "The reference latent with the largest |cosine|, and that cosine.",
    ),
    "lens": (
        "Lens",
        "Tokens that the direction raises most through the model's final norm and head (logit lens), and"
        " those that it lowers most. Its peak stands beside that of random directions.",
    ),
    "steered": (
        "Steered text",
        "What the base model writes after “The” when this direction is added to its residual stream at every"
        " token, at half and at the whole length that the stream usually has there: the likeliest token each"
        " time. It is a model's output. What random directions of the same length do stands beside it.",
    ),
    "causal": (
        "Causal effect",
        "By how many thousandths of a nat a token the two models come nearer when the direction is taken out"
        " of the adapted model, or put into the base; beside random directions of the same strength (null).",
    ),
    "order": (
        "Order",
        "By concern: latents that the reference cannot see first, then by energy × reproducibility.",
    ),
    "scaling": (
        "What it does to the base",
        "new: the base activations do not go along. amplified, suppressed, turned: what it does to a base"
        " feature that fires with it.",
    ),
    "p": ("p", "How often a figure as far from its null would appear by chance alone. Small: not chance."),
    "q": (
        "q",
        "p corrected over all candidates that were tried: of all that are called confirmed, this share is"
        " expected to be chance.",
    ),
    "d_sae": ("d_sae", "Latents of a dictionary: how many directions it may use."),
    "nll": ("Loss", "Mean negative log-likelihood of a held-out token, in nats. Lower: better predicted."),
    "adaptation": (
        "Adaptation",
        "Demonstrated where the held-out loss on its own text fell by more than chance can do alone.",
    ),
    "ap": (
        "Average precision",
        "How well one latent tells the planted tokens from all others. 1: perfectly.",
    ),
    "snr": (
        "Signal over noise",
        "Energy of the delta over the energy of the measured noise floor of the arithmetic.",
    ),
    "relative_norm": ("‖δ‖ / ‖h‖", "Mean norm of the delta over the mean norm of the base activations."),
    "top_coordinates": ("In 3 coordinates", "Share of the delta's energy in its three largest coordinates."),
    "top_tokens": ("In 0.1 % of tokens", "Share of its energy in the 0.1 % of tokens that carry most."),
    "in_mean": ("In the mean", "Share of its energy in its mean: a constant shift of all tokens."),
    "injected": (
        "Injected here",
        "‖injected‖² / ‖δ‖²: the share that this layer's own block puts in, beside what it passes on. It may"
        " exceed 1 where the block undoes what it passes on.",
    ),
}
"""Key → title and text of what is no metric."""


OF_CARDS_TOO = ("visible_share", "repeat_share")
"""Metrics that the cards name, whatever was measured."""


class Entry(msgspec.Struct):
    """One explanation."""

    title: str
    text: str


def glossary(inputs: ReportInputs, shown: Collection[str]) -> dict[str, Entry]:
    """An explanation of every metric in `shown`, of the cards, and of words that stand beside all figures."""
    entries = {key: Entry(title, text) for key, (title, text) in OF_CARDS.items()}
    entries |= {term: Entry(sentence(term), text) for term, text in TERMS.items()}
    monitors = {row.metric for row in inputs.monitors}
    for name in sorted({*shown, *METRICS, *OF_CARDS_TOO, *monitors}):
        entries[name] = _entry(name, inputs)
    return entries


def _entry(name: str, inputs: ReportInputs) -> Entry:
    """The page's own words for a metric, else the catalogue's formula, with null and ceiling."""
    words = describe(name, inputs)
    try:
        known = metric(name)
    except KeyError:
        return Entry(sentence(words.label), words.definition)
    parts = [words.definition or f"{sentence(catalogued(name).formula)}."]
    parts += [f"Null: {known.null}." if known.null else ""]
    parts += [f"Ceiling: {known.ceiling}." if known.ceiling else ""]
    k = directions(name)
    label = sentence(words.label)
    title = label if k is None else f"{label}, k = {k}"
    return Entry(title, " ".join(filter(None, parts)))


def sentence(text: str) -> str:
    """Begun by a capital; κ and p stay as they are."""
    if len(text) < 2:
        return text
    return text[:1].upper() + text[1:]
