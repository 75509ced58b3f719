"""What a study finds: behaviour gate, divergence, verdicts."""

from dataclasses import dataclass

from deltasae_ray.analyses.audit.run import AuditResults
from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.behaviour.run import behaviours, losses
from deltasae_ray.analyses.config import SEED
from deltasae_ray.analyses.controls import CONTROLS, FOR_VISIBILITY, REFERENCE, REFERENCE_SEED, SIBLINGS
from deltasae_ray.analyses.leaf_spec import LeafSpec, RandomCell
from deltasae_ray.analyses.questions import AUDIT, VISIBILITY, Asked, answers
from deltasae_ray.analyses.table import DivergenceRow, leaf_figures
from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.analyses.triggers.run import claims
from deltasae_ray.analyses.verdict import Verdict, seeing, verdict
from deltasae_ray.analyses.verdict_figures import Against
from deltasae_ray.analyses.visibility.run import Seen, with_effects
from deltasae_ray.analyses.weights.figures import describe_directions
from deltasae_ray.analyses.weights.run import Directions, directions_of
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import BASE, RANDOM
from deltasae_ray.study.controls import beside as points_beside
from deltasae_ray.study.controls import of_random
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.state import StudyState


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
    audit: AuditResults
    claims: dict[str, tuple[Claim, ...]]
    """Adapter, the random one included, → what it is claimed to have learnt; empty where nothing was
    elicited."""


def behaviour_of(study: Study, state: StudyState) -> list[dict]:
    """The behaviour gate: what every adapter does to the predictions on evaluation documents, as
    `document_losses` tells it."""
    return losses(study.context, trained_adapters(state))


def learnt(study: Study, state: StudyState) -> dict[str, tuple[Claim, ...]]:
    """What every adapter is claimed to have learnt, in text that it wrote itself, the first random one beside
    them."""
    assert state.harvest is not None
    shown = [a for a in state.harvest.adapters if a.kind == "adapter" or a.name == RANDOM]
    return claims(study.context, shown, study.cfg.elicit, SEED)


def compare(
    study: Study, state: StudyState, gate: list[dict], learnt_claims: dict[str, tuple[Claim, ...]]
) -> Findings:
    """Divergence of every leaf, and one verdict per adapter.

    Args:
        gate: what `behaviour_of` found.
        learnt_claims: what `learnt` found.
    """
    assert state.harvest is not None
    cfg, adapters = study.cfg, trained_adapters(state)
    behaviour = {
        a.name: behaviours(gate, a.name, bootstrap=cfg.diverge.bootstrap, seed=SEED) for a in adapters
    }
    refs = {a.name: a for a in adapters}
    specs = [
        _spec(state, f, refs[t.adapter], held_against(study, state, f.point))
        for t, fitted in state.grid.items()
        for f in fitted
    ]
    answered = answers(Asked(study.context, state.harvest.key, specs, cfg.diverge, adapters))
    everything = tuple(row for answer in answered.values() for row in answer.rows)
    rows, by_text = (tuple(r for r in everything if bool(r.corpus) == text) for text in (False, True))
    audit = AUDIT.of(answered)
    seen = with_effects(VISIBILITY.of(answered), audit.effects or {})
    name = reference_name(study, state)
    given = not cfg.reference.is_toy
    writes = directions_of(study.storage, adapters)
    beside = min((len(x) for x in study.siblings.values()), default=0)
    against = Against(name, given, cfg.diverge.atoms, beside)
    sights = {leaf.identity: sight for leaf, sight in seen.sights.items()}
    verdicts = tuple(
        verdict(
            a.name,
            seeing(leaf_figures(rows, a.name), sights),
            behaviour[a.name],
            against,
            describe_directions(writes[a.name]),
        )
        for a in adapters
    )
    return Findings(name, rows, by_text, seen, writes, behaviour, verdicts, audit, learnt_claims)


def trained_adapters(state: StudyState) -> list[AdapterRef]:
    """The adapters under study, without the random one."""
    assert state.harvest is not None
    return [a for a in state.harvest.adapters if a.kind == "adapter"]


@dataclass(frozen=True)
class HeldAgainst:
    """What a dictionary of deltas is compared with."""

    name: str
    reference: str
    """Folder below the storage root, or any folder."""
    siblings: tuple[str, ...] = ()
    """Others of its release, by which what it sees is calibrated."""


def held_against(study: Study, state: StudyState, point: FitPoint) -> HeldAgainst:
    """The reference that was given for the point's layer, or the toy of its shape."""
    if study.references:
        layer = point.layer
        return HeldAgainst(study.cfg.reference.source, study.references[layer], study.siblings.get(layer, ()))
    (toy,) = points_beside(REFERENCE, point).values()
    return HeldAgainst(toy_name(state.controls[toy]), state.controls[toy].key)


def reference_name(study: Study, state: StudyState) -> str:
    """What deltas are held against, in words: one name for all layers and shapes, whose toys are fitted on
    the same documents."""
    if study.references:
        return study.cfg.reference.source
    return next(
        toy_name(f) for p, f in state.controls.items() if p.adapter == BASE and p.seed == REFERENCE_SEED
    )


def toy_name(fitted: FittedDictionary) -> str:
    return f"toy reference ({fitted.rows:,} tokens)"


def _spec(state: StudyState, fitted: FittedDictionary, adapter: AdapterRef, against: HeldAgainst) -> LeafSpec:
    p = fitted.point
    points = {role: point for control in CONTROLS for role, point in points_beside(control, p).items()}
    fitted_beside = {
        role: state.controls[point].key for role, point in points.items() if point in state.controls
    }
    siblings = tuple(key for role, key in fitted_beside.items() if role in SIBLINGS)
    beside = {role: key for role, key in fitted_beside.items() if role not in FOR_VISIBILITY}
    if (ceiling := _next_seed(state, p)) is not None:
        beside["second"] = ceiling
    return LeafSpec(
        **vars(p.identity),
        rank=adapter.rank,
        adapter_seed=adapter.seed,
        dictionary=fitted.key,
        reference=against.reference,
        reference_name=against.name,
        beside=tuple(beside.items()),
        siblings=siblings,
        release=against.siblings,
        randoms=_randoms(state, p),
    )


def _randoms(state: StudyState, p: FitPoint) -> tuple[RandomCell, ...]:
    """For every random adapter of the study, its dictionaries of the point's layer and shape."""
    harvested = state.harvest.adapters if state.harvest is not None else ()
    cells = []
    for ref in harvested:
        points = of_random(ref.name, p) if ref.kind == "random" else {}
        keys = [state.controls[point].key for point in points.values() if point in state.controls]
        if keys:
            cells.append(RandomCell(ref.digest, keys[0], tuple(keys[1:])))
    return tuple(cells)


def _next_seed(state: StudyState, p: FitPoint) -> str | None:
    """Finds the dictionary of the next seed, in a ring: no seed is the ceiling of two
    (metrics/over_seeds.py)."""
    fits = [*(f for group in state.grid.values() for f in group), *state.controls.values()]
    plain = [
        f for f in fits if f.point.cell == p.cell and f.point.documents == "all" and f.point.control == "none"
    ]
    others = [f for f in plain if f.point.seed != p.seed]
    return min(others, key=lambda f: (f.point.seed < p.seed, f.point.seed)).key if others else None
