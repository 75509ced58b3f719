"""The report: one HTML file that asks for nothing from the network, its figures apart, and the values it was
made of."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup

from deltasae_ray.analyses import paper
from deltasae_ray.report import charts, typeset, wording
from deltasae_ray.report.cards import summaries
from deltasae_ray.report.inputs import AdapterFacts, Rate, ReportInputs
from deltasae_ray.report.latent_rows import CONTEXTS, FIGURES, LatentRow
from deltasae_ray.report.notes import kappa_notes
from deltasae_ray.report.page_data import PageData, page_data
from deltasae_ray.report.plain import of_study
from deltasae_ray.report.wording import TERMS, figure, interval, share
from deltasae_ray.storage import Storage

HERE = Path(__file__).parent
TEMPLATES = charts.TEMPLATES
SCRIPTS = (
    "vendor/vega.js",
    "vendor/table.js",
    *(f"scripts/{name}.js" for name in ("dom", "tables", "charts", "latents", "page")),
)
"""In the order in which the page runs them."""
PAGE, VALUES = "report.html", "report.json"
LOW_SNR = 100
"""Energy of the deltas over that of the noise floor, below which the page says so."""


def render(inputs: ReportInputs) -> str:
    """The page."""
    return _render(inputs, *page_data(inputs))


def report_files(inputs: ReportInputs) -> dict[str, bytes]:
    """Name → bytes of everything the report consists of: the page, its values, and its figures as SVG and
    PNG."""
    data, latents = page_data(inputs)
    files = {PAGE: _render(inputs, data, latents).encode(), VALUES: inputs.to_json().encode()}
    return files | charts.drawn_files(data)


def write_report(inputs: ReportInputs, storage: Storage) -> dict[str, bytes]:
    """Writes `report_files` under the storage root, the page last, and returns them."""
    files = report_files(inputs)
    for name in sorted(files, key=lambda name: name == PAGE):
        storage.write_bytes(name, files[name])
    return files


def _render(inputs: ReportInputs, data: PageData, latents: list[LatentRow]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "style.css").read_text()
    scripts = [(HERE / name).read_text() for name in SCRIPTS]
    return environment.get_template("page.html.j2").render(
        r=inputs,
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=list(map(Markup, scripts)),
        data=_embedded(msgspec.json.encode(data).decode()),
        latents=_embedded(msgspec.json.encode(latents).decode()),
        specs=_embedded(json.dumps(charts.specs())),
        not_shown=_not_shown(inputs),
        model_note=inputs.model_note,
        summaries=(shown := summaries(inputs)),
        of_study=of_study([(one.label, one.plain) for one in shown]),
        tabs=_tabs(inputs, data, len(latents)),
        verdicts=[typeset.verdict(v) for v in inputs.verdicts],
        statements=[typeset.prose(s) for s in _statements(inputs)],
        kappa_notes=kappa_notes(inputs.rows),
        on_planted=wording.on_planted(inputs),
        paper_notes=paper.NOTES,
        losses=any(a.losses for a in inputs.adapters),
        splits=list(dict.fromkeys(s for c in inputs.corpora for s in c.tokens)),
        terms=list(TERMS.items()),
        not_tested=_not_tested(inputs),
        total=lambda part: wording.seconds(sum(getattr(t, part) or 0.0 for t in inputs.timings)),
        figures_held=FIGURES,
        contexts_held=CONTEXTS,
        prose=typeset.prose,
        rate=_rate,
        count=lambda n: "–" if n is None else f"{n:,}",
        signed=lambda x: ("+" if x > 0 else "") + figure(x),
        figure=figure,
        interval=interval,
        share=share,
        seconds=wording.seconds,
    )


def _policy(style: str, scripts: Sequence[str]) -> str:
    """The page allows itself its own style sheet and scripts, by their hashes, and nothing else: no request,
    whatever a text may smuggle in."""
    allowed = " ".join(map(_hash, scripts))
    own = f"style-src {_hash(style)}; script-src {allowed}"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _embedded(text: str) -> Markup:
    """JSON inside a script element: no text in it can end the element."""
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _tabs(inputs: ReportInputs, data: PageData, latents: int) -> list[tuple[str, str, int]]:
    """(name, title, how many entries) of every tab."""
    claims = sum(
        len(one.triggers) + sum(map(len, one.words.values())) for one in inputs.learnt if not one.control
    )
    return [
        ("behaviours", "Behaviours", claims),
        ("latents", "Latents", latents),
        ("monitors", "Monitors", len({m.monitor for m in data.monitors})),
        ("measures", "Measures", len(data.charts)),
        ("run", "Run and limits", 0),
    ]


def _rate(rate: Rate) -> str:
    return f"{rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}]".replace("%", "\u00a0%")


def _not_shown(inputs: ReportInputs) -> str:
    """What leads the page where training showed no gain; empty where it did."""
    weak = wording.not_demonstrated(inputs)
    if len(weak) == 1:
        return _no_gain(inputs, weak[0])
    return f"{', '.join(a.name for a in weak)}: held-out loss fell by no more than chance." if weak else ""


def _no_gain(inputs: ReportInputs, adapter: AdapterFacts) -> str:
    adapted = {c.name for c in inputs.corpora if c.adapted_to}
    training = f"after {adapter.steps} steps on {adapter.tokens or 0:,} tokens " if adapter.steps else ""
    for loss in adapter.losses:
        if loss.corpus in adapted:
            change = figure(loss.after - loss.before)
            ci = loss.loss_change.ci
            sure = f" {interval(*ci)}" if ci else ""
            sentence = f"the held-out loss on {loss.corpus} changed by {change}{sure} nats"
            chance = ci is not None and ci[0] <= 0 <= ci[1]
            return (
                f"{adapter.name}: {training}{sentence}, which"
                f" {'chance alone could do' if chance else 'was not counted as a shown gain'}."
            )
    return f"{adapter.name}: {training}no gain on held-out text was shown."


def _statements(inputs: ReportInputs) -> list[str]:
    statements = [*inputs.statements, *wording.on_ranks(inputs)]
    noisy = [
        f"{a.name} layer {f.layer} ({f.snr:.0f})"
        for a in inputs.adapters
        for f in a.layers
        if f.snr is not None and f.snr < LOW_SNR
    ]
    if noisy:
        statements.append(
            f"Less than {LOW_SNR} times the energy of the measured noise floor: the deltas of"
            f" {', '.join(noisy)}."
        )
    return statements + [
        f"Trial {name} failed and is missing here: {error}" for name, error in inputs.failures.items()
    ]


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
