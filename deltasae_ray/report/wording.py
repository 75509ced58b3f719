"""The page's own words: what each figure is called and means, how numbers are written, and what is said of a
study."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltasae_ray.metrics.against_chance import OTHER_RECIPE
from deltasae_ray.metrics.catalogue import Metric, metric, parse_name, split_variant
from deltasae_ray.report.inputs import AdapterFacts, ReportInputs


@dataclass(frozen=True)
class MetricWords:
    """How the page speaks of one metric; `{reference}` stands for the reference's name, `{k}` for the atoms
    per token, `{recipe}` for how the base control was made beside a reference that was given."""

    label: str
    definition: str
    at_chance: str
    """What it means when the figure is not told from its null; continues "At chance: "."""


METRICS = {
    "not_visible_share": MetricWords(
        "Latents not visible, f",
        "Of the latents that can be judged (they repeat in another seed, fire often enough and have"
        " structure), the share that the {reference} expresses no better than directions which it cannot"
        " know. Latents of other base dictionaries are the scale. The verdict is made of its interval,"
        " which holds over all layers of the adapter at once.",
        "no latent is shown to be missed by the {reference}",
    ),
    "calibration": MetricWords(
        "Latents not visible over features held",
        "What share of latents would be found not visible, if the {reference} held a known share of the"
        " features: planted mixtures of base latents and absent directions, on the scale of this study. The"
        " verdict reads f through it.",
        "",
    ),
    "missing_share": MetricWords(
        "Missing share M({k})",
        "The share of the structure found in the deltas that the {reference} lacks. Deltas are sparse-coded"
        " with {k} atoms per token, of the {reference} and of the delta dictionary, and so are deltas with"
        " signs flipped along their principal axes, which keeps second moments and destroys structure beyond"
        " them. 0: the {reference} does as well as the dictionary trained on the deltas. 1: it does no better"
        " than featureless atoms.",
        "the {reference} is not shown to explain more of these deltas than featureless atoms do",
    ),
    "monitor_r2": MetricWords(
        "What a deployed monitor sees (R²)",
        "Another claim than M: the deployed encoder of the {reference} instead of an ideal coder. The change"
        " of its reconstruction, SAE(adapted) − SAE(base), is compared with the delta itself: R² at the best"
        " scale. Null: the same with sign-flipped deltas.",
        "a deployed monitor is not shown to see more of these deltas than of featureless ones",
    ),
    "controls": MetricWords(
        "Missing share where the answer is known",
        "M of the {reference} beside M of a second dictionary of base activations (other seed, other"
        " documents{recipe}), and beside M of the {reference} where the deltas are those of a random adapter"
        " of the same strength: what it misses of a change that means nothing.",
        "",
    ),
    "max_cosine_weighted": MetricWords(
        "Nearest reference latent, energy-weighted cosine",
        "For each alive delta latent the largest cosine with any alive latent of the {reference}, averaged"
        " with the latents' energies E[z²] as weights. Null: random atoms with the deltas' covariance. 1"
        " would be exact copies.",
        "the latents that carry the energy are not shown to lie closer to the {reference} than random atoms"
        " with the same covariance",
    ),
    "matching": MetricWords(
        "Nearest reference latent, where the answer is known",
        "For each alive latent the largest cosine with any alive latent of the {reference}, averaged: of the"
        " delta dictionary, and of dictionaries by the same recipe of a random adapter's deltas and of base"
        " activations (the base control{recipe}). Where the base control is not aligned, the figure says"
        " nothing of this adapter.",
        "",
    ),
    "fvu": MetricWords(
        "Unexplained variance (FVU)",
        "Share of the centred variance of held-out deltas left by {k} atoms per token of each dictionary,"
        " ideally coded. 1 is what predicting the mean leaves. PCA-{k} uses {k} fixed directions; random"
        " atoms are drawn from the deltas' covariance, as many as the delta dictionary has.",
        "",
    ),
    "angle_pca": MetricWords(
        "Mean principal angle",
        "Mean angle between the k leading principal directions of the deltas and those of the base"
        " activations. Null: k random directions with the deltas' covariance. 0° is the same subspace, 90° is"
        " orthogonal.",
        "the deltas' leading directions are not shown to lie closer to the base activations' than random ones"
        " with the same covariance",
    ),
    "coactivation": MetricWords(
        "Firing with a reference latent (co-activation)",
        "For each alive delta latent the correlation of its firing, on deltas, with the firing of one latent"
        " of the {reference} on base activations of the same tokens, averaged with the latents' energies as"
        " weights. Which reference latent that is was chosen on training documents; the figure is of the"
        " evaluation documents. 1: every latent fires exactly where one of the {reference} does. Null:"
        " documents permuted.",
        "the latents that carry the energy are not shown to fire where latents of the {reference} fire",
    ),
    "cka_adapters": MetricWords(
        "Deltas of two adapters alike (CKA)",
        "Unbiased linear CKA of both adapters' deltas on the same tokens. Null: documents permuted. Ceiling:"
        " two trainings of one rank that differ in their seed only, where the study has them; adapters of"
        " different ranks cannot be asked to be more alike.",
        "these two adapters are not shown to change the tokens more alike than by chance",
    ),
    "max_cosine_adapters": MetricWords(
        "Dictionaries of two adapters alike (|cosine|)",
        "For each alive latent of the first adapter the largest |cosine| with one of the second's, averaged."
        " Null: random atoms with the deltas' covariance. Ceiling as above; without it, a second seed of the"
        " dictionary. The second's dictionary is of another seed where it has one, so that no start is"
        " shared; where it has not, the row says so.",
        "the second adapter's latents are not shown to lie closer than random atoms with the same covariance",
    ),
    "missing_share_adapters": MetricWords(
        "Missing share of one adapter in another's dictionary",
        "M of the first adapter's deltas with the second's dictionary in the place of the {reference}. 0: it"
        " sees all of the structure. 1: no more than featureless atoms. Ceiling as above.",
        "the second adapter's dictionary is not shown to explain more of these deltas than featureless"
        " atoms do",
    ),
    "learning": MetricWords(
        "Learning curves",
        "Unexplained variance of training batches while the delta dictionaries were fitted, over optimizer"
        " steps.",
        "",
    ),
    "dead_latents": MetricWords(
        "Dead latents while learning",
        "Latents of each delta dictionary that had not fired for an epoch (10 million tokens at most), over"
        " optimizer steps. Many at the end mean a dictionary smaller than its size says: dead latents enter"
        " no measure.",
        "",
    ),
}

TERMS = {
    "null": (
        "The same figure where there is nothing to find. One that cannot be told from its null is at chance,"
        " and the page says so."
    ),
    "ceiling": "The best that could be expected: the same figure between two dictionaries that should agree.",
    "interval": (
        "95 %, from resampling whole documents (latents, for what is counted over latents). With fewer than"
        " 30 documents it is undefined, and a fact of one dictionary has none. It speaks of the dictionary"
        " that was trained, not of what another seed would give."
    ),
    "over seeds": (
        "The mean over dictionaries of several training seeds. Its interval holds the variance between seeds"
        " beside that over documents, by a t quantile, since few seeds know little of it; the verdict is"
        " judged by it."
    ),
    "κ": (
        "Where the figure lies between its null (0) and its ceiling (1), with a 95 % interval from resamples"
        " in which all three move together. Undefined where those two are too close to tell apart. Compared"
        " only where ceilings differ by .1 at most."
    ),
    "undefined": (
        "The figure has no meaning here; the reason stands beside it. It is never written as a number."
    ),
}


def describe(metric: str, inputs: ReportInputs) -> MetricWords:
    """The metric's words with the names of this study in them; an unknown metric is called as the catalogue
    calls it."""
    if (parts := parse_name(metric)).over_seeds:
        words = describe(parts.figure, inputs)
        return replace(words, label=f"{words.label}, over seeds")
    entry = METRICS.get(metric)
    if entry is None:
        return MetricWords(catalogued(metric).title, "", "it is not shown to differ from its null")
    names = {
        "reference": inputs.reference,
        "k": str(inputs.atoms),
        "recipe": OTHER_RECIPE if inputs.reference_given else "",
    }
    return MetricWords(*(text.format(**names) for text in (entry.label, entry.definition, entry.at_chance)))


def catalogued(name: str) -> Metric:
    """The catalogue's entry; a metric that it does not have is called by its own name."""
    try:
        entry = metric(name)
    except KeyError:
        return Metric(name, name.replace("_", " "), "", "", "", "", None, "")
    _, variant = split_variant(name)
    return replace(entry, title=f"{entry.title}, {variant}") if variant else entry


def figure(value: float | None, digits: int = 3) -> str:
    """Three significant digits at most, decimals that line up, a real minus sign; an en dash for what is not
    there."""
    if value is None:
        return "–"
    value = round(value, 9)
    size = abs(value)
    if value != 0 and not 1e-3 <= size < 1e5:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = digits - 1 if size < 10 else digits - 2 if size < 100 else 0
    text = f"{value:,.{decimals + (size < 0.01 and value != 0)}f}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"[{figure(low)}, {figure(high)}]"


def share(value: float | None) -> str:
    """A percentage."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}\u00a0%" if value >= 0.0005 or value == 0 else f"{100 * value:.1g}\u00a0%"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f} s" if value < 90 else f"{value / 60:.1f} min"


def seeds_per_rank(adapters: Sequence[AdapterFacts]) -> dict[int, int]:
    """Rank → adapters of that rank; controls do not count."""
    ranks: dict[int, set[str]] = {}
    for a in adapters:
        if not a.control:
            ranks.setdefault(a.rank, set()).add(a.name)
    return {rank: len(seeds) for rank, seeds in sorted(ranks.items())}


def on_ranks(inputs: ReportInputs) -> tuple[str, ...]:
    """The claims about rank if each rank has two adapter seeds or more, else why none is made; nothing for a
    single rank."""
    counts = seeds_per_rank(inputs.adapters)
    if len(counts) < 2:
        return ()
    lacking = [f"rank {rank} has {n}" for rank, n in counts.items() if n < 2]
    if lacking:
        return (
            (
                "No claim about rank is made: it takes two adapter seeds per rank or more, and"
                f" {', '.join(lacking)}. A difference between ranks seen here may be a difference between two"
                " training runs."
            ),
        )
    return inputs.rank_claims


def on_planted(inputs: ReportInputs) -> str:
    """How often each adapter met the planted marker in its training, and whether an adapter that never did
    finds it as well."""
    met = [f"{a.name} {a.planted}" for a in inputs.adapters if a.planted is not None]
    sentence = (
        [f"Training contexts that held it: {', '.join(met)}; of a few an adapter may have learnt nothing."]
        if met
        else []
    )
    controls = {a.name for a in inputs.adapters if a.control}
    tried = [p for p in inputs.planted if p.adapter in controls]
    if tried:
        layers = [p.layer for p in tried if p.finding.recovered]
        where = (
            f"finds it at {numbered('layer', layers)}: not because it was learnt, but because the text is"
            " unlike the rest"
        )
        sentence.append(
            f"The random adapter, which was trained on nothing, {where if layers else 'does not find it'}."
        )
    return " ".join(sentence)


def not_demonstrated(inputs: ReportInputs) -> list[AdapterFacts]:
    """Adapters whose training showed no gain beyond chance: what the page leads with."""
    return [a for a in inputs.adapters if a.demonstrated is False and not a.control]


def numbered(noun: str, numbers: Sequence[int]) -> str:
    """Counts a word and lists what it counts, such as "layers 9, 12"."""
    return f"{noun}{'s' if len(set(numbers)) > 1 else ''} {', '.join(map(str, sorted(set(numbers))))}"
