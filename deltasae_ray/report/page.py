"""The report: one HTML file that asks for nothing from the network, its figures apart, and the values it was
made of."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from deltasae_ray.analyses import paper
from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.metrics.catalogue import BETWEEN, Metric
from deltasae_ray.report import typeset, wording
from deltasae_ray.report.charts import Figure, figures
from deltasae_ray.report.headline import headline, headline_notes
from deltasae_ray.report.inputs import AdapterFacts, LatentGroup, ReportInputs
from deltasae_ray.report.notes import kappa_notes
from deltasae_ray.report.wording import METRICS, TERMS, catalogued, describe, figure, interval, share
from deltasae_ray.storage import Storage

TEMPLATES = Path(__file__).parent / "templates"
PAGE, VALUES = "report.html", "report.json"
LOW_SNR = 100
"""Energy of the deltas over that of the noise floor, below which the page says so."""


def render(inputs: ReportInputs) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("style.css").render()
    drawn = figures(inputs)
    return environment.get_template("page.html.j2").render(
        r=inputs,
        style=Markup(style),
        # The page allows itself this one style sheet and nothing else: no script, no request, whatever a text
        # may smuggle in.
        style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        not_shown=_not_shown(inputs),
        question=_question(inputs),
        model_note=_sentence(inputs.model_note),
        verdicts=[typeset.verdict(v) for v in inputs.verdicts],
        statements=[typeset.prose(s) for s in _statements(inputs)],
        headline=headline(inputs),
        headline_notes=headline_notes(inputs),
        kappa_notes=kappa_notes(inputs.rows),
        on_planted=wording.on_planted(inputs),
        figures=drawn,
        catalogue=_catalogue(inputs),
        paper_notes=paper.NOTES,
        between=_between(inputs),
        label=lambda metric: describe(metric, inputs).label,
        splits=list(dict.fromkeys(s for c in inputs.corpora for s in c.tokens)),
        measured=any(a.layers for a in inputs.adapters),
        definitions=_definitions(inputs, drawn),
        not_tested=_not_tested(inputs),
        total=lambda part: wording.seconds(sum(getattr(t, part) or 0.0 for t in inputs.timings)),
        shown=max((_leading(g) for g in inputs.latents), default=0),
        audited={(g.adapter, g.layer, c.latent) for g in inputs.latents for c in g.cards},
        tokens=typeset.tokens,
        prose=typeset.prose,
        count=lambda n: "–" if n is None else f"{n:,}",
        signed=lambda x: ("+" if x > 0 else "") + figure(x),
        figure=figure,
        interval=interval,
        share=share,
        seconds=wording.seconds,
        measured_as=wording.measured_as,
        beside=wording.beside_null,
        said=lambda token: token.replace("\r", "").replace("\n", "↵").strip(" ") or "␣",
    )


def report_files(inputs: ReportInputs) -> dict[str, str]:
    """Name → text of everything the report consists of: the page, its values, and each panel as an SVG that
    stands alone."""
    style = (TEMPLATES / "style.css").read_text()
    rules = "\n".join(rule for rule in style.splitlines() if rule.startswith("svg "))
    files = {PAGE: render(inputs), VALUES: inputs.to_json()}
    for drawn in figures(inputs):
        for i, panel in enumerate(drawn.panels, start=1):
            files[f"figures/{drawn.key}-{i}.svg"] = str(panel).replace(">", f"><style>\n{rules}\n</style>", 1)
    return files


def write_report(inputs: ReportInputs, storage: Storage) -> dict[str, str]:
    """Writes `report_files` under the storage root, the page last, and returns them."""
    files = report_files(inputs)
    for name in sorted(files, key=lambda name: name == PAGE):
        storage.write_bytes(name, files[name].encode())
    return files


@dataclass(frozen=True)
class _NotShown:
    """What the page leads with where an adapter's training showed no gain."""

    whom: str
    """Empty where it is all of them."""
    lines: tuple[str, ...]


def _not_shown(inputs: ReportInputs) -> _NotShown | None:
    failed = wording.not_demonstrated(inputs)
    if not failed:
        return None
    every = len(failed) == sum(not a.control for a in inputs.adapters)
    return _NotShown(
        "" if every else f" for {', '.join(a.name for a in failed)}",
        tuple(_no_gain(inputs, a) for a in failed),
    )


def _no_gain(inputs: ReportInputs, adapter: AdapterFacts) -> str:
    adapted = {c.name for c in inputs.corpora if c.adapted_to}
    training = f"after {adapter.steps} steps on {adapter.tokens or 0:,} tokens " if adapter.steps else ""
    for loss in adapter.losses:
        if loss.corpus in adapted:
            change = figure(loss.after - loss.before)
            ci = loss.loss_change.ci
            sure = f" {interval(*ci)}" if ci else ""
            told = f"the held-out loss on {loss.corpus} changed by {change}{sure} nats"
            chance = ci is not None and ci[0] <= 0 <= ci[1]
            return (
                f"{adapter.name}: {training}{told}, which"
                f" {'chance alone could do' if chance else 'was not counted as a shown gain'}."
            )
    return f"{adapter.name}: {training}no gain on held-out text was shown."


def _question(inputs: ReportInputs) -> str:
    names = [a.name for a in inputs.adapters if not a.control] or ["the adapters"]
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"What did {who} add to {inputs.model}, and how much of it can the {inputs.reference} see?"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _statements(inputs: ReportInputs) -> list[str]:
    said = [*inputs.statements, *wording.on_ranks(inputs)]
    noisy = [
        f"{a.name} layer {f.layer} ({f.snr:.0f})"
        for a in inputs.adapters
        for f in a.layers
        if f.snr is not None and f.snr < LOW_SNR
    ]
    if noisy:
        said.append(
            f"Less than {LOW_SNR} times the energy of the measured noise floor: the deltas of"
            f" {', '.join(noisy)}."
        )
    return said + [
        f"Trial {name} failed and is missing here: {error}" for name, error in inputs.failures.items()
    ]


def _leading(group: LatentGroup) -> int:
    """How many latents of the table are shown without a gap; those of the audit follow."""
    return sum(card.rank == place for place, card in enumerate(group.cards, start=1))


def _definitions(inputs: ReportInputs, drawn: Sequence[Figure]) -> list[tuple[str, str]]:
    """A line for every figure that is shown, then for the words that stand beside all of them."""
    shown = {f.key.removesuffix("_by_layer").removesuffix("_over_k") for f in drawn} | {
        r.name for r in inputs.rows
    }
    found = {words.label: words.definition for m in METRICS if m in shown for words in (describe(m, inputs),)}
    return [*found.items(), *TERMS.items()]


def _catalogue(inputs: ReportInputs) -> list[Metric]:
    """The entry of every metric of the table, once."""
    return list(dict.fromkeys(catalogued(r.name) for r in inputs.rows))


def _between(inputs: ReportInputs) -> list[DivergenceRow]:
    """Figures between two adapters, of the largest dictionaries with the first seed; a row's reference is the
    second adapter."""
    rows = [r for r in inputs.rows if r.metric in BETWEEN]
    largest = max((r.d_sae or 0 for r in rows), default=0)
    return [r for r in rows if (r.d_sae or 0, r.seed or 0) == (largest, 0)]


def _not_tested(inputs: ReportInputs) -> list[str]:
    """What the caller says, and what no study of this kind can say."""
    layers = ", ".join(map(str, inputs.layers))
    unseen = "triggers absent from this text"
    always = (
        f"{unseen} and not reached by sampled text or the scan of the vocabulary"
        if inputs.learnt
        else unseen,
        f"places in the model other than the residual stream after layers {layers}",
    )
    return [
        text.rstrip(".") + "."
        for text in dict.fromkeys((*(t.rstrip(".") for t in inputs.not_tested), *always))
    ]
