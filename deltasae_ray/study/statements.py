"""Sentences of the page about a whole study: its text, its controls, and what rank and depth show."""

from deltasae_ray.analyses.ranks import RankFigure, depth_statement, rank_statement
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
