"""Writes what a study found: tables, and the page."""

from collections.abc import Sequence
from dataclasses import replace

from deltasae_ray.analyses.audit.run import audit_groups
from deltasae_ray.analyses.audit.table import write_audit
from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.monitors.table import MonitorRow
from deltasae_ray.analyses.paper import Block, Judged, paper_blocks, paper_table
from deltasae_ray.analyses.table import leaf_figures, write_table
from deltasae_ray.analyses.triggers.run import write_claims
from deltasae_ray.analyses.visibility.table import write_latents
from deltasae_ray.analyses.weights.run import write_directions
from deltasae_ray.corpus.contexts import PLANTED
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.load import load_tokenizer
from deltasae_ray.report.inputs import (
    JudgedLatents,
    LatentGroup,
    LayerFacts,
    Planted,
    ReportInputs,
    Timing,
    VerdictLines,
)
from deltasae_ray.report.latent_rows import CONTEXTS, FIGURES, by_concern
from deltasae_ray.report.learnt import learnt_facts
from deltasae_ray.report.page import write_report
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.sae.identity import RANDOM
from deltasae_ray.study import results
from deltasae_ray.study.clock import Clock
from deltasae_ray.study.compare import Findings, trained_adapters
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.page_rows import Deltas, Latents, latents, layer_facts
from deltasae_ray.study.plan import Plan
from deltasae_ray.study.state import StudyState
from deltasae_ray.study.statements import (
    control_statements,
    depth_statements,
    lost_controls,
    rank_statements,
    size_lines,
    study_statements,
)


def demonstrated(ref: AdapterRef, behaviour: Sequence[Behaviour]) -> bool:
    """Whether the held-out loss fell by more than chance: by the training's own criterion, or for a given
    adapter by the gate."""
    if "demonstrated" in ref.facts:
        return bool(ref.facts["demonstrated"])
    change = behaviour[0].loss_change
    return change.ci is not None and change.ci[1] < 0


def write_results(
    study: Study,
    state: StudyState,
    findings: Findings,
    plan: Plan,
    clock: Clock,
    watched: Sequence[MonitorRow] = (),
) -> None:
    """Tables, then the page: both below the storage root."""
    assert state.harvest is not None
    _write_tables(study, findings)
    tokenizer = load_tokenizer(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code)
    audits = audit_groups(findings.audit, tokenizer.decode)
    write_audit(study.storage, audits)
    paper = _paper(state, findings)
    study.storage.write_bytes("paper.md", paper_table(paper).encode())
    marked = study.cfg.corpus.marker_share > 0 and not study.given
    layers, groups, planted = _shown(study, state, findings, marked)
    has = {a.name: demonstrated(a, findings.behaviour[a.name]) for a in trained_adapters(state)}
    inputs = ReportInputs(
        title="What the adapters added",
        model=study.model.label,
        model_note=results.model_note(study),
        reference=findings.reference,
        reference_given=not study.cfg.reference.is_toy,
        atoms=study.cfg.diverge.atoms,
        layers=study.layers,
        corpora=results.corpus_facts(study),
        adapters=results.adapter_facts(state.harvest, layers, findings.behaviour, has),
        verdicts=tuple(
            VerdictLines(v.head, v.label, v.answers, v.adapter, v.layers, v.untold) for v in findings.verdicts
        ),
        learnt=learnt_facts(findings.claims),
        rows=findings.rows,
        curves=results.curves([f for group in state.grid.values() for f in group], findings.seen.sights),
        audits=tuple(replace(group, rows=group.rows[:FIGURES]) for group in audits),
        judged=_judged(findings),
        latents=groups,
        monitors=tuple(watched),
        planted=planted,
        planted_text=PLANTED if marked else "",
        timings=tuple(
            Timing(s, plan.seconds.get(s), took)
            for s, took in clock.longest(study.storage, state.harvest.key).items()
        ),
        statements=(
            *study_statements(study),
            *control_statements(study, findings),
            *lost_controls(state),
            *size_lines(findings),
            *depth_statements(findings),
        ),
        rank_claims=tuple(rank_statements(findings)),
        paper=tuple(paper),
        failures={trial.name: error for trial, error in state.failed.items()},
        **results.what_was_run(study, state.harvest),
    )
    write_report(inputs, study.storage)


def _write_tables(study: Study, findings: Findings) -> None:
    """Figures, latents, directions of the weights, and claims where text was elicited."""
    write_table(study.storage, (*findings.rows, *findings.by_text))
    write_latents(study.storage, findings.seen.sights)
    write_directions(study.storage, findings.writes)
    if findings.claims:
        write_claims(study.storage, findings.claims)


def _shown(
    study: Study, state: StudyState, findings: Findings, marked: bool
) -> tuple[dict[str, tuple[LayerFacts, ...]], tuple[LatentGroup, ...], tuple[Planted, ...]]:
    """Adapter → facts of its deltas by layer; latents of the largest dictionaries with the first seed; where
    the marker is among them, and among those of the random adapter, which was never shown it."""
    assert state.harvest is not None
    names, key = [a.name for a in state.harvest.adapters], state.harvest.key
    largest, tokenizer = (
        _largest(state),
        load_tokenizer(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code),
    )
    shown = [
        f
        for t, group in state.grid.items()
        if t.d_sae == largest[t.adapter]
        for f in group
        if f.point.seed == 0
    ]
    control = (
        [f for p, f in state.controls.items() if p.adapter == RANDOM and p.d_sae == max(largest.values())]
        if marked
        else []
    )
    deltas = [
        (layer_facts, Deltas(study.storage, key, name, layer)) for name in names for layer in study.layers
    ]
    opened = _opened(findings)
    cards = [
        (
            latents,
            Latents(study.storage, key, f.point, f.key, tokenizer.decode, opened.get(f.key, ()), marked),
        )
        for f in shown + control
    ]
    made_of = run_tasks([*deltas, *cards], 1.0, bar="report")
    facts = [tuple(made_of[i * len(study.layers) : (i + 1) * len(study.layers)]) for i in range(len(names))]
    groups = made_of[len(deltas) :]
    return (
        dict(zip(names, facts, strict=True)),
        tuple(g for g, _ in groups[: len(shown)]),
        tuple(p for _, p in groups if p is not None),
    )


def _paper(state: StudyState, findings: Findings) -> list[Block]:
    """The published study's figures beside those of the largest dictionaries."""
    assert state.harvest is not None
    largest, ranks = _largest(state), {a.name: a.rank for a in state.harvest.adapters}
    leaves = [leaf for v in findings.verdicts for leaf in leaf_figures(findings.rows, v.adapter)]
    judged = [
        Judged(ranks[leaf.adapter], leaf)
        for leaf in leaves
        if (leaf.d_sae, leaf.seed) == (largest[leaf.adapter], 0)
    ]
    return paper_blocks(judged, findings.behaviour)


def _judged(findings: Findings) -> tuple[JudgedLatents, ...]:
    """Which latents the reference can see, of the dictionaries that are audited."""
    sights = {leaf.identity: sight for leaf, sight in findings.seen.sights.items()}
    return tuple(
        JudgedLatents(**vars(leaf.identity), latents=sights[leaf.identity].own.answer.latents)
        for leaf in findings.audit.audits
        if leaf.identity in sights
    )


def _opened(findings: Findings) -> dict[str, tuple[int, ...]]:
    """Key of a dictionary → the latents that the page shows with their contexts."""
    labels = {one.identity: {x.index: x.label for x in one.latents} for one in _judged(findings)}
    return {
        leaf.dictionary: tuple(by_concern(audited.audit.rows, labels.get(leaf.identity, {}))[:CONTEXTS])
        for leaf, audited in findings.audit.audits.items()
    }


def _largest(state: StudyState) -> dict[str, int]:
    """Adapter → latents of its largest dictionaries; a trial that failed has none."""
    return {
        t.adapter: max(other.d_sae for other in state.grid if other.adapter == t.adapter) for t in state.grid
    }
