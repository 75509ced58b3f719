"""Visibility of a study: Ray tasks for each layer and shape of dictionary; the driver holds answers, never
activations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.run import task_memory
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.analyses.visibility.figures import Asked, CellVisibility
from deltasae_ray.analyses.visibility.layer_figures import FIGURE, Sight, measures
from deltasae_ray.analyses.visibility.task import CellGroup, CellSpec, judge_and_store, read_answer
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.sae.identity import Trial
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage

ALONE = (
    "one training seed: which latents another one finds is not known, and only those are judged. A second"
    " (fit.seeds=2, or diverge.controls=[fast,seeds]) costs one more dictionary for each of the study"
)
NO_BASES = (
    "no base dictionary stands beside the reference (diverge.controls=base), so what a visible latent scores"
    " is not known"
)

CELLS_A_TASK = 4
"""Cells that one task decides, at most: they share what is asked of the base, a third of a cell's time."""
_COST: dict[Asked, int] = {"all": 4, "latents": 1, "random": 1}
"""Time of a cell, about, by what is asked of it."""

Sights = dict[LeafSpec, Sight]


@dataclass(frozen=True)
class Seen:
    """What was found of every cell, by the dictionary of its first seed."""

    sights: Sights
    rows: tuple[DivergenceRow, ...]


def see_points(storage: Storage, harvest_key: str, leaves: Sequence[LeafSpec], cfg: DivergeConfig) -> Seen:
    """Decides which latents the reference can see, for every adapter, layer and shape that has no answer yet.

    Raises:
        DeltaSaeError: what a task raised on purpose.
    """
    shards = open_harvest(storage, harvest_key)
    cells = first_seeds(leaves)
    specs = {
        leaf: cell_spec(leaf, alike, shards.source(leaf.adapter).digest, _asked(leaf, leaves))
        for leaf, alike in cells.items()
    }
    wanted = {spec for spec in specs.values() if spec.others and spec.bases}
    wanted |= {spec for leaf in cells if specs[leaf] in wanted for spec in random_specs(leaf)}
    keys = {spec: spec.key(storage, shards, cfg) for spec in sorted(wanted, key=str)}
    todo = {key: spec for spec, key in keys.items() if not storage.exists(key)}
    work = [
        (judge_and_store, CellGroup(storage, harvest_key, some, tuple(keys[spec] for spec in some), cfg))
        for some in groups(list(todo.values()))
    ]
    run_tasks(work, 1.0, bar="visibility", memory=task_memory(shards, leaves))
    answers = {spec: read_answer(storage, key) for spec, key in keys.items()}
    sights = {leaf: _sight(leaf, spec, answers) for leaf, spec in specs.items()}
    return Seen(sights, tuple(_rows(sights)))


def groups(specs: Sequence[CellSpec]) -> list[tuple[CellSpec, ...]]:
    """Cells that share the base's side, a few a task; the longest tasks first, so that none is left to run
    alone."""
    together: dict[tuple, list[CellSpec]] = defaultdict(list)
    for spec in specs:
        together[spec.layer, spec.reference, spec.bases].append(spec)
    parts = [
        tuple(some[i : i + CELLS_A_TASK])
        for some in together.values()
        for i in range(0, len(some), CELLS_A_TASK)
    ]
    return sorted(parts, key=lambda some: sum(_COST[spec.asked] for spec in some), reverse=True)


def with_effects(seen: Seen, effects: Mapping[LeafSpec, Mapping[str, Mapping[str, Measure]]]) -> Seen:
    """What was found, with what each latent does to predictions, where that was measured.

    Args:
        effects: leaf → latent by name → side → nats.
    """
    sights = {
        leaf: replace(
            sight, effects={int(n): m["ablated"] for n, m in effects.get(leaf, {}).items() if n.isdecimal()}
        )
        for leaf, sight in seen.sights.items()
    }
    return replace(seen, sights=sights)


def first_seeds(leaves: Sequence[LeafSpec]) -> dict[LeafSpec, list[LeafSpec]]:
    """The dictionary of the first seed of every cell → all dictionaries of the cell, whatever their order."""
    cells: dict[tuple, list[LeafSpec]] = defaultdict(list)
    for leaf in leaves:
        cells[leaf.cell].append(leaf)
    ordered = (sorted(alike, key=lambda leaf: leaf.seed) for alike in cells.values())
    return {alike[0]: alike for alike in ordered}


def _asked(leaf: LeafSpec, leaves: Sequence[LeafSpec]) -> Asked:
    """Missing shares cost as much as all else, and the verdict reads those of the largest dictionaries."""
    return "all" if leaf.d_sae == max(other.d_sae for other in leaves) else "latents"


def cell_spec(leaf: LeafSpec, alike: Sequence[LeafSpec], source: str, asked: Asked = "all") -> CellSpec:
    """What is decided of a cell: of its first seed, beside all others, the control's included."""
    second = leaf.control("second")
    others = dict.fromkeys([other.dictionary for other in alike[1:]] + ([second] if second else []))
    return CellSpec(leaf.layer, source, leaf.dictionary, tuple(others), leaf.reference, _bases(leaf), asked)


def random_specs(leaf: LeafSpec) -> list[CellSpec]:
    """Leaves of random adapters of the same strength, as their adapters' leaves ask for them."""
    return [
        CellSpec(leaf.layer, r.source, r.dictionary, r.others, leaf.reference, _bases(leaf), "random")
        for r in leaf.randoms
        if r.others
    ]


def _bases(leaf: LeafSpec) -> tuple[str, ...]:
    if leaf.release:
        return leaf.release
    control = leaf.control("base_control")
    return (*([control] if control else []), *leaf.siblings)


def _sight(leaf: LeafSpec, spec: CellSpec, answers: dict[CellSpec, CellVisibility]) -> Sight:
    if spec not in answers:
        return Sight(CellVisibility.undefined(NO_BASES if spec.others else ALONE))
    return Sight(answers[spec], tuple(answers[r] for r in random_specs(leaf)))


def _rows(sights: Sights) -> list[DivergenceRow]:
    """Rows of every cell, and of each text by itself; intervals hold over the layers of an adapter at
    once."""
    together: dict[Trial, dict[int, LeafSpec]] = defaultdict(dict)
    for leaf in sights:
        together[leaf.trial][leaf.layer] = leaf
    rows = []
    for by_layer in together.values():
        by_layer_figures = measures({layer: sights[leaf] for layer, leaf in by_layer.items()})
        for layer, leaf in by_layer.items():
            rows += [DivergenceRow.of(leaf, name, m) for name, m in by_layer_figures[layer].items()]
            rows += [
                DivergenceRow.of(leaf, name, m, corpus=text.corpus)
                for text in sights[leaf].own.texts
                for name, m in _of_text(text.counts.not_visible_share(len(by_layer)), text.missing).items()
            ]
    return rows


def _of_text(share: Measure, missing: Measure) -> dict[str, Measure]:
    return {FIGURE: replace(share, null=0.0), "missing_share": missing}
