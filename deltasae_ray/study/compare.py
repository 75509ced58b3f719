"""The end of a study: behaviour gate, divergence, verdicts; then tables, MLflow and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltasae_ray.analyses.audit.run import Found, audit_groups, audit_study, audited_latents, leading
from deltasae_ray.analyses.audit.table import write_audit
from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.behaviour.run import behaviours, losses
from deltasae_ray.analyses.config import SEED
from deltasae_ray.analyses.controls import CONTROLS, RANDOM_SECOND, REFERENCE, REFERENCE_SEED, SIBLINGS
from deltasae_ray.analyses.divergence.run import diverge_points
from deltasae_ray.analyses.leaf_spec import LeafSpec, RandomCell
from deltasae_ray.analyses.loss_recovered.run import recovered_rows
from deltasae_ray.analyses.paper import Judged, paper_blocks, paper_table
from deltasae_ray.analyses.ranks import RankFigure, depth_statement, rank_statement
from deltasae_ray.analyses.table import DivergenceRow, leaf_figures, write_table
from deltasae_ray.analyses.verdict import Verdict, seeing, verdict
from deltasae_ray.analyses.verdict_figures import Against
from deltasae_ray.analyses.visibility.run import Seen, see_points
from deltasae_ray.analyses.visibility.table import write_latents
from deltasae_ray.analyses.weights.figures import told
from deltasae_ray.analyses.weights.run import Directions, directions_of, write_directions
from deltasae_ray.corpus.contexts import PLANTED
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.prepare import RANDOM
from deltasae_ray.metrics.against_chance import control_statement
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.capture import BASE
from deltasae_ray.models.load import has_post_norm, load_tokenizer
from deltasae_ray.report.inputs import LatentGroup, LayerFacts, Planted, ReportInputs, Timing, VerdictLines
from deltasae_ray.report.page import write_report
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.study import results
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.page_rows import Deltas, Latents, latents, layer_facts
from deltasae_ray.study.plan import Clock, Plan
from deltasae_ray.study.state import Made


@dataclass(frozen=True)
class Findings:
    """What the comparison found."""

    reference: str
    rows: tuple[DivergenceRow, ...]
    """Of all texts together."""
    by_text: tuple[DivergenceRow, ...]
    """Of each text by itself."""
    seen: Seen
    """Which latents the reference can see."""
    writes: Directions
    """Adapter → what its weights write, whatever the text."""
    behaviour: dict[str, list[Behaviour]]
    """Adapter → what it does to predictions, by text."""
    verdicts: tuple[Verdict, ...]
    audit: Found


def behaviour_of(study: Study, made: Made) -> list[dict]:
    """The behaviour gate: what every adapter does to the predictions on evaluation documents, as
    `document_losses` tells it."""
    return losses(study.context, _trained(made))


def compare(study: Study, made: Made, gate: list[dict]) -> Findings:
    """Divergence of every leaf, and one verdict per adapter.

    Args:
        gate: what `behaviour_of` found.
    """
    assert made.harvest is not None
    cfg, adapters = study.cfg, _trained(made)
    behaviour = {
        a.name: behaviours(gate, a.name, bootstrap=cfg.diverge.bootstrap, seed=SEED) for a in adapters
    }
    refs = {a.name: a for a in adapters}
    specs = [
        _spec(made, f, refs[t.adapter], held_against(study, made, f.point))
        for t, fitted in made.grid.items()
        for f in fitted
    ]
    rows = tuple(diverge_points(study.storage, made.harvest.key, specs, cfg.diverge))
    if "loss_recovered" in cfg.diverge.chosen:
        rows += tuple(recovered_rows(study.context, made.harvest.key, specs, cfg.diverge, adapters))
    audit = audit_study(study.context, made.harvest.key, specs, cfg.diverge, adapters)
    rows += tuple(audit.rows)
    seen = see_points(study.storage, made.harvest.key, specs, cfg.diverge)
    rows += tuple(r for r in seen.rows if not r.corpus)
    by_text = tuple(r for r in seen.rows if r.corpus)
    name = reference_name(study, made)
    given = not cfg.reference.is_toy
    writes = directions_of(study.storage, adapters)
    against = Against(name, given, cfg.diverge.atoms)
    sights = {leaf.identity: sight for leaf, sight in seen.sights.items()}
    verdicts = tuple(
        verdict(
            a.name,
            seeing(leaf_figures(rows, a.name), sights),
            behaviour[a.name],
            against,
            told(writes[a.name]),
        )
        for a in adapters
    )
    return Findings(name, rows, by_text, seen, writes, behaviour, verdicts, audit)


def _trained(made: Made) -> list[AdapterRef]:
    """The adapters under study, without the random one."""
    assert made.harvest is not None
    return [a for a in made.harvest.adapters if a.kind == "adapter"]


@dataclass(frozen=True)
class HeldAgainst:
    """What a dictionary of deltas is compared with."""

    name: str
    reference: str
    """Folder below the storage root, or any folder."""


def held_against(study: Study, made: Made, point: FitPoint) -> HeldAgainst:
    """The reference that was given for the point's layer, or the toy of its shape."""
    if study.references:
        return HeldAgainst(study.cfg.reference.source, study.references[point.layer])
    (toy,) = REFERENCE.fits(point)
    return HeldAgainst(toy_name(made.controls[toy]), made.controls[toy].key)


def reference_name(study: Study, made: Made) -> str:
    """What deltas are held against, in words: one name for all layers and shapes, whose toys are fitted on
    the same documents."""
    if study.references:
        return study.cfg.reference.source
    return next(
        toy_name(f) for p, f in made.controls.items() if p.adapter == BASE and p.seed == REFERENCE_SEED
    )


def toy_name(fitted: FittedDictionary) -> str:
    return f"toy reference ({fitted.rows:,} tokens)"


def _spec(made: Made, fitted: FittedDictionary, adapter: AdapterRef, against: HeldAgainst) -> LeafSpec:
    p = fitted.point
    harvested = made.harvest.adapters if made.harvest is not None else ()
    points = {role: point for control in CONTROLS for role, point in control.beside(p).items()}
    fitted_beside = {
        role: made.controls[point].key for role, point in points.items() if point in made.controls
    }
    siblings = tuple(key for role, key in fitted_beside.items() if role in SIBLINGS)
    random_second = fitted_beside.get(RANDOM_SECOND)
    beside = {role: key for role, key in fitted_beside.items() if role not in (*SIBLINGS, RANDOM_SECOND)}
    if (ceiling := _next_seed(made, p)) is not None:
        beside["second"] = ceiling
    random = (
        next((a.digest for a in harvested if a.kind == "random"), None)
        if "random_adapter" in beside
        else None
    )
    return LeafSpec(
        **vars(p.identity),
        rank=adapter.rank,
        adapter_seed=adapter.seed,
        dictionary=fitted.key,
        reference=against.reference,
        reference_name=against.name,
        random_source=random,
        beside=tuple(beside.items()),
        siblings=siblings,
        randoms=(RandomCell(random, beside["random_adapter"], (random_second,)),)
        if random and random_second
        else (),
    )


def _next_seed(made: Made, p: FitPoint) -> str | None:
    """The same recipe from the next seed, in a ring: no seed is the ceiling of two
    (metrics/over_seeds.py)."""
    fits = [*(f for group in made.grid.values() for f in group), *made.controls.values()]
    plain = [
        f for f in fits if f.point.cell == p.cell and f.point.documents == "all" and f.point.control == "none"
    ]
    others = [f for f in plain if f.point.seed != p.seed]
    return min(others, key=lambda f: (f.point.seed < p.seed, f.point.seed)).key if others else None


def demonstrated(ref: AdapterRef, behaviour: Sequence[Behaviour]) -> bool:
    """Whether the held-out loss fell by more than chance: by the training's own criterion, or for a given
    adapter by the gate."""
    if "demonstrated" in ref.facts:
        return bool(ref.facts["demonstrated"])
    change = behaviour[0].loss_change
    return change.ci is not None and change.ci[1] < 0


def write_results(study: Study, made: Made, found: Findings, plan: Plan, clock: Clock) -> None:
    """Tables, then the page: both below the storage root."""
    assert made.harvest is not None
    write_table(study.storage, (*found.rows, *found.by_text))
    write_latents(study.storage, found.seen.sights)
    write_directions(study.storage, found.writes)
    tokenizer = load_tokenizer(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code)
    audits = audit_groups(found.audit, tokenizer.decode)
    write_audit(study.storage, audits)
    largest = _largest(made)
    leaves = [leaf for v in found.verdicts for leaf in leaf_figures(found.rows, v.adapter)]
    ranks = {a.name: a.rank for a in made.harvest.adapters}
    judged = [
        Judged(ranks[leaf.adapter], leaf)
        for leaf in leaves
        if (leaf.d_sae, leaf.seed) == (largest[leaf.adapter], 0)
    ]
    paper = paper_blocks(judged, found.behaviour)
    study.storage.write_bytes("paper.md", paper_table(paper).encode())
    marked = study.cfg.corpus.marker_share > 0 and not study.given
    layers, groups, planted = _shown(study, made, found, marked)
    has = {a.name: demonstrated(a, found.behaviour[a.name]) for a in _trained(made)}
    inputs = ReportInputs(
        title="What the adapters added",
        model=study.model.label,
        model_note=results.model_note(study),
        reference=found.reference,
        reference_given=not study.cfg.reference.is_toy,
        atoms=study.cfg.diverge.atoms,
        layers=study.layers,
        corpora=results.corpus_facts(study),
        adapters=results.adapter_facts(made.harvest, layers, found.behaviour, has),
        verdicts=tuple(VerdictLines(v.head, v.label, v.answers) for v in found.verdicts),
        rows=found.rows,
        curves=results.learning_curves([f for group in made.grid.values() for f in group]),
        audits=tuple(leading(group, study.cfg.diverge.latents) for group in audits),
        latents=groups,
        planted=planted,
        planted_text=PLANTED if marked else "",
        timings=tuple(
            Timing(s, plan.seconds.get(s), took)
            for s, took in clock.longest(study.storage, made.harvest.key).items()
        ),
        statements=(*_statements(study), *_control_stands(study, found), *_lost(made), *_depth_claims(found)),
        rank_claims=tuple(_rank_claims(found)),
        paper=tuple(paper),
        failures={trial.name: error for trial, error in made.failed.items()},
        **results.what_was_run(study, made.harvest),
    )
    write_report(inputs, study.storage)


def _shown(
    study: Study, made: Made, found: Findings, marked: bool
) -> tuple[dict[str, tuple[LayerFacts, ...]], tuple[LatentGroup, ...], tuple[Planted, ...]]:
    """Adapter → facts of its deltas by layer; latents of the largest dictionaries with the first seed; where
    the marker is among them, and among those of the random adapter, which was never shown it."""
    assert made.harvest is not None
    names, key = [a.name for a in made.harvest.adapters], made.harvest.key
    largest, tokenizer = (
        _largest(made),
        load_tokenizer(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code),
    )
    shown = [
        f
        for t, group in made.grid.items()
        if t.d_sae == largest[t.adapter]
        for f in group
        if f.point.seed == 0
    ]
    control = (
        [f for p, f in made.controls.items() if p.adapter == RANDOM and p.d_sae == max(largest.values())]
        if marked
        else []
    )
    deltas = [
        (layer_facts, Deltas(study.storage, key, name, layer)) for name in names for layer in study.layers
    ]
    audited, cfg = audited_latents(found.audit, study.cfg.diverge.latents), study.cfg.diverge
    cards = [
        (
            latents,
            Latents(
                study.storage, key, f.point, f.key, tokenizer.decode, cfg, audited.get(f.key, ()), marked
            ),
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


def _largest(made: Made) -> dict[str, int]:
    """Adapter → latents of its largest dictionaries; a trial that failed has none."""
    return {
        t.adapter: max(other.d_sae for other in made.grid if other.adapter == t.adapter) for t in made.grid
    }


def _statements(study: Study) -> list[str]:
    said = [f"{warning[0].upper()}{warning[1:]}." for warning in study.corpus.overlap_warnings]
    said += [f"{note[0].upper()}{note[1:]}." for note in study.corpus.notes]
    if study.cfg.harvest.min_snr < 10:
        said.append(
            f"harvest.min_snr was lowered to {study.cfg.harvest.min_snr:g}: deltas below a signal-to-noise"
            " ratio of 10 were let through."
        )
    if study.stream is not None:
        first = study.stream.windows[0].num_tokens()
        said.append(
            f"Deltas were streamed: dictionaries saw {study.corpus.num_tokens('fit'):,} tokens in"
            f" {len(study.stream.windows)} windows; covariances, and with them every null that is matched to"
            f" one, come from the first window ({first:,} tokens)."
        )
    if has_post_norm(study.model.folder, trust_remote_code=study.cfg.model.trust_remote_code):
        said.append(
            "δ = s·B·A·u does not hold in this model: its blocks norm what attention and MLP write"
            " (post-norm)."
        )
    if study.cfg.model.weights == "bf16":
        said.append(
            "The base's weights were held in bf16: where the checkpoint is finer, the model in question is"
            " the rounded one."
        )
    return said


def _control_stands(study: Study, found: Findings) -> list[str]:
    """How the base control stands against the reference; it is the same for every adapter, and told of the
    largest dictionaries."""
    told = [r for r in found.rows if r.name == "max_cosine_base_control"]
    # The last of a layer counts. Defined ones come last: an adapter that is silent at a layer leaves every
    # figure there undefined.
    by_layer = {
        r.layer: r.measure for r in sorted(told, key=lambda r: (r.measure.value is not None, r.d_sae))
    }
    said = control_statement(by_layer, given=not study.cfg.reference.is_toy)
    return [said] if said else []


def _lost(made: Made) -> list[str]:
    return [
        f"The control {p} could not be fitted, and what it would say is missing: {error}"
        for p, error in made.lost.items()
    ]


_SIZES = (("density", "Active latents per token", 1.0),)
"""Metric of how much a delta holds, its name, and the difference that counts as none."""


def _rank_claims(found: Findings) -> list[str]:
    shares = _figures(found, "missing_share")
    layers = sorted({f.layer for f in shares})
    claims = [
        rank_statement(f"Missing share, layer {layer}", [f for f in shares if f.layer == layer])
        for layer in layers
    ]
    return claims + [
        rank_statement(title, figures, margin=m)
        for name, title, m in _SIZES
        if (figures := _figures(found, name))
    ]


def _depth_claims(found: Findings) -> list[str]:
    return [said for name, title, _ in _SIZES if (said := depth_statement(title, _figures(found, name)))]


def _figures(found: Findings, metric: str) -> list[RankFigure]:
    """One per adapter and layer: of the largest dictionary, its first k, architecture and seed."""
    rows = [
        r for r in found.rows if r.name == metric and r.reference == found.reference and r.value is not None
    ]
    first = min(((-r.d_sae, r.k, r.architecture, r.seed) for r in rows), default=None)
    same = [r for r in rows if (-r.d_sae, r.k, r.architecture, r.seed) == first]
    return [
        RankFigure(r.rank or 0, r.adapter_seed or 0, r.value, r.layer) for r in same if r.value is not None
    ]
