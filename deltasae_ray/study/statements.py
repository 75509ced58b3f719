"""Sentences of the page about a whole study: its text, its controls, and what rank and depth show."""

from collections.abc import Sequence

from deltasae_ray.analyses.divergence.adapter_seeds import describe_pairs
from deltasae_ray.analyses.ranks import (
    RankFigure,
    depth_statement,
    paired_statement,
    rank_statement,
    size_statement,
)
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.metrics.against_chance import control_statement
from deltasae_ray.models.load import has_post_norm
from deltasae_ray.study.compare import Findings
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.state import StudyState


def study_statements(study: Study) -> list[str]:
    parts = [f"{warning[0].upper()}{warning[1:]}." for warning in study.corpus.overlap_warnings]
    parts += [f"{note[0].upper()}{note[1:]}." for note in study.corpus.notes]
    if study.cfg.harvest.min_snr < 10:
        parts.append(
            f"harvest.min_snr was lowered to {study.cfg.harvest.min_snr:g}: deltas below a signal-to-noise"
            " ratio of 10 were let through."
        )
    if study.stream is not None:
        first = study.stream.windows[0].num_tokens()
        parts.append(
            f"Deltas were streamed: dictionaries saw {study.corpus.num_tokens('fit'):,} tokens in"
            f" {len(study.stream.windows)} windows; covariances, and with them every null that is matched to"
            f" one, come from the first window ({first:,} tokens)."
        )
    if has_post_norm(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code):
        parts.append(
            "δ = s·B·A·u does not hold in this model: its blocks norm what attention and MLP write"
            " (post-norm)."
        )
    if left_out := describe_pairs(len(study.adapter_names), study.cfg.diverge.pairs):
        parts.append(f"Pairs of adapters: {left_out}.")
    if study.cfg.model.weights == "bf16":
        parts.append(
            "The base's weights were held in bf16: where the checkpoint is finer, the model in question is"
            " the rounded one."
        )
    return parts


def control_statements(study: Study, findings: Findings) -> list[str]:
    """How the base control stands against the reference; it is the same for every adapter, and told of the
    largest dictionaries."""
    parts = [r for r in findings.rows if r.name == "max_cosine_base_control"]
    # The last of a layer counts. Defined ones come last: an adapter that is silent at a layer leaves every
    # figure there undefined.
    by_layer = {
        r.layer: r.measure for r in sorted(parts, key=lambda r: (r.measure.value is not None, r.d_sae))
    }
    statement = control_statement(by_layer, given=not study.cfg.reference.is_toy)
    return [statement] if statement else []


def lost_controls(state: StudyState) -> list[str]:
    return [
        f"The control {p} could not be fitted, and what it would say is missing: {error}"
        for p, error in state.lost.items()
    ]


_SIZES = (("density", "Active latents per token", 1.0),)
"""Metric of how much a delta holds, its name, and the difference that counts as none."""


def rank_statements(findings: Findings) -> list[str]:
    shares = _figures(findings, "missing_share")
    layers = sorted({f.layer for f in shares})
    claims = [
        rank_statement(f"Missing share, layer {layer}", [f for f in shares if f.layer == layer])
        for layer in layers
    ]
    return claims + [
        rank_statement(title, figures, margin=m)
        for name, title, m in _SIZES
        if (figures := _figures(findings, name))
    ]


_MATTERS = {
    "visible_share": ("share of visible latents", 0.1),
    "domain loss": ("change of the loss on the text adapted to", 0.05),
    "fvu_delta": ("FVU", 0.05),
}
"""What may change with the size of an adapter or of its dictionary: its name, and the change that counts as
none."""


def size_lines(findings: Findings) -> list[str]:
    """Does rank or size matter? A line each: what changes over rank and over d_sae, whether that is as good
    as none, and what would have been seen."""
    by_rank = {name: _figures(findings, name) for name in _MATTERS} | {"domain loss": _losses(findings)}
    by_size = {name: _by_size(findings, name) for name in ("visible_share", "fvu_delta")}
    lines = []
    for along, by_name in (("rank", by_rank), ("d_sae", by_size)):
        if len({f.rank for figures in by_name.values() for f in figures}) < 2:
            continue
        state = size_statement if along == "rank" else paired_statement
        sentences = [
            state(_MATTERS[name][0], figures, along=along, margin=_MATTERS[name][1])
            for name, figures in by_name.items()
            if figures
        ]
        lines.append(f"Does {along} matter? {_once(sentences)}")
    return lines


def _once(sentences: Sequence[str]) -> str:
    """Sentences in a row; where none can be made for one reason, that reason once."""
    reasons = {s.partition(": ")[2] for s in sentences}
    return f"{next(iter(reasons)).capitalize()}" if len(reasons) == 1 else " ".join(sentences)


def _losses(findings: Findings) -> list[RankFigure]:
    """The change of the loss on the text adapted to, one an adapter."""
    facts = {r.adapter: (r.rank or 0, r.adapter_seed or 0) for r in findings.rows}
    return [
        RankFigure(*facts[name], b.loss_change.value)
        for name, behaviour in findings.behaviour.items()
        for b in behaviour
        if name in facts and b.corpus == DOMAIN and b.loss_change.value is not None
    ]


def _by_size(findings: Findings, metric: str) -> list[RankFigure]:
    """One per adapter, layer and d_sae: of the first k, architecture and seed."""
    rows = [
        r
        for r in findings.rows
        if r.name == metric and r.reference == findings.reference and r.value is not None
    ]
    first = min(((r.k, r.architecture, r.seed) for r in rows), default=None)
    names = sorted({r.adapter for r in rows})
    return [
        RankFigure(r.d_sae, names.index(r.adapter), r.value or 0.0, r.layer)
        for r in rows
        if (r.k, r.architecture, r.seed) == first
    ]


def depth_statements(findings: Findings) -> list[str]:
    return [
        statement
        for name, title, _ in _SIZES
        if (statement := depth_statement(title, _figures(findings, name)))
    ]


def _figures(findings: Findings, metric: str) -> list[RankFigure]:
    """One per adapter and layer: of the largest dictionary, its first k, architecture and seed."""
    rows = [
        r
        for r in findings.rows
        if r.name == metric and r.reference == findings.reference and r.value is not None
    ]
    first = min(((-r.d_sae, r.k, r.architecture, r.seed) for r in rows), default=None)
    same = [r for r in rows if (-r.d_sae, r.k, r.architecture, r.seed) == first]
    return [
        RankFigure(r.rank or 0, r.adapter_seed or 0, r.value, r.layer) for r in same if r.value is not None
    ]
