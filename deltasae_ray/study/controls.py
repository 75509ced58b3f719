"""What the chosen controls fit beside the grid, and what each of them costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from deltasae_ray.analyses.causal import run as causal
from deltasae_ray.analyses.controls import (
    BASE_CONTROL,
    CONTROLS,
    RANDOM_LORA,
    REFERENCE,
    SECOND_SEED,
    SIBLINGS,
    Control,
)
from deltasae_ray.analyses.loss_recovered.run import DOCUMENTS, STAND_INS
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import failure, fitted_points, keys_of, raise_failures
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import BASE, DictionaryId, Trial
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.grid import grid_points, shapes, trials
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.requirements import ranks_beside
from deltasae_ray.study.state import StudyState


def control_points(
    layers: Sequence[int],
    fit: FitConfig,
    adapters: Sequence[AdapterRef],
    chosen: frozenset[str],
    *,
    toy_reference: bool,
    siblings: bool = True,
) -> list[FitPoint]:
    """Dictionaries of the study that are no points of its grid: the toy reference, and what the controls
    need.

    Args:
        chosen: controls by name.
        siblings: whether siblings of the reference are fitted: its release has none.
    """
    fitted = [c for c in CONTROLS if _fitted(c, fit, adapters, chosen)]
    if toy_reference:
        fitted.insert(int(BASE_CONTROL in fitted), REFERENCE)
    once = [c for c in fitted if c.is_shared]
    ones = [DictionaryId(BASE, layer, *shape, 0) for shape in shapes(fit) for layer in layers]
    randoms = [a.name for a in adapters if a.kind == "random"]
    points = []
    for control in once:
        each = [of_random(name, one) for one in ones for name in randoms]
        if control != RANDOM_LORA:
            each = [beside(control, one) for one in ones]
        points += [point for fits in each for role, point in fits.items() if siblings or role not in SIBLINGS]
    for trial in trials(adapters, fit):
        grid = grid_points(trial, layers, 1)
        each = [c for c in fitted if c not in once]
        points += [point for control in each for one in grid for point in beside(control, one).values()]
    return points


def beside(control: Control, one: DictionaryId) -> dict[str, FitPoint]:
    """Role → the point of the dictionary that a control fits beside one of the grid, whatever the seed of
    that one."""
    return {
        role: FitPoint(
            other.source or one.adapter,
            one.layer,
            *one.shape,
            seed=other.seed,
            documents=other.documents,
            control=other.control,
        )
        for role, other in control.fits.items()
    }


def of_random(name: str, one: DictionaryId) -> dict[str, FitPoint]:
    """Role → the point of what is fitted of the random adapter of a name, beside one of the grid."""
    return {role: replace(point, adapter=name) for role, point in beside(RANDOM_LORA, one).items()}


def _fitted(control: Control, fit: FitConfig, adapters: Sequence[AdapterRef], chosen: frozenset[str]) -> bool:
    """Whether a control has something to fit."""
    if control.name == "random_lora":
        return any(a.kind == "random" for a in adapters)
    return control.name in chosen and (control != SECOND_SEED or fit.seeds == 1)


def with_settings(
    points: Sequence[FitPoint], settings: Mapping[Trial, FitConfig], fit: FitConfig
) -> dict[FitPoint, FitConfig]:
    """Point → how it is fitted: a control as its trial, to be a null or a ceiling of that recipe; what
    belongs to none as `fit` says."""
    return {p: settings.get(p.trial, fit) for p in points}


def keep_controls(state: StudyState, storage: Storage, points: Mapping[FitPoint, FitConfig]) -> None:
    """Books the controls that are fitted, and those of adapters that could not be: they fail as the adapter's
    own dictionaries do.

    Raises:
        DictionaryError, PrecisionError: the reference or the base control could not be fitted.
    """
    assert state.harvest is not None
    keys: dict[FitPoint, str] = {}
    for each in dict.fromkeys(points.values()):
        alike = [p for p, cfg in points.items() if cfg == each]
        keys |= keys_of(storage, state.harvest.key, alike, each)
        state.controls |= fitted_points(storage, state.harvest.key, alike, each)
    lost = {p: key for p, key in keys.items() if p not in state.controls}
    raise_failures(storage, {p: key for p, key in lost.items() if p.adapter == BASE})
    state.lost = {p: str(failure(storage, key)) for p, key in lost.items()}


def control_dictionaries(
    cfg: StudyConfig, layers: int, trials_count: int, randoms: int, *, siblings: bool = True
) -> dict[str, int]:
    """Control → dictionaries that it adds to the fits.

    Args:
        layers: how many.
        randoms: how many random adapters there are.
        siblings: whether siblings of the reference are fitted.
    """
    fit, chosen = cfg.fit, cfg.diverge.chosen
    needed = {
        c.name: (
            layers
            * sum(siblings or role not in SIBLINGS for role in c.fits)
            * (len(shapes(fit)) if c.is_shared else trials_count)
        )
        for c in CONTROLS
        if c.fits and (c != SECOND_SEED or fit.seeds == 1)
    }
    if RANDOM_LORA.name in needed:
        needed[RANDOM_LORA.name] *= randoms
    return {name: cost for name, cost in needed.items() if name in chosen}


def recovery_passes(study: Study, adapters: int) -> float:
    """Whole forward passes of an evaluation context that loss_recovered makes: continuations count for the
    blocks that they run."""
    if "loss_recovered" not in study.cfg.diverge.chosen:
        return 0.0
    depth = study.model.num_layers
    below = sum((depth - 1 - layer) / depth for layer in study.layers)
    return DOCUMENTS * (2 + adapters + adapters * (STAND_INS + 1) * below)


def causal_passes(study: Study, adapters: int) -> float:
    """Whole forward passes that causal makes: continuations of the base and of the adapted model."""
    if "causal" not in study.cfg.diverge.chosen:
        return 0.0
    depth = study.model.num_layers
    below = sum((depth - 1 - layer) / depth for layer in study.layers)
    return causal.DOCUMENTS * (1 + adapters + 2 * adapters * causal.VARIANTS * below)


def random_adapters(study: Study) -> int:
    """How many random adapters stand beside those of the study."""
    return len(ranks_beside(study.cfg, [a.rank for a in study.given]))


def describe_costs(study: Study, adapters: int, trials_count: int) -> str:
    """The chosen controls with what each costs, for the plan."""
    randoms = random_adapters(study)
    dictionaries = control_dictionaries(
        study.cfg, len(study.layers), trials_count, randoms, siblings=not study.has_siblings
    )
    parts = [
        f"{name} {n} dictionaries" + (f" and {randoms} more passes" if name == "random_lora" else "")
        for name, n in dictionaries.items()
        if n
    ]
    if passes := recovery_passes(study, adapters):
        parts.append(f"loss_recovered {passes:,.0f} passes of a context")
    if passes := causal_passes(study, adapters):
        parts.append(f"causal {passes:,.0f} passes of a context")
    return "; ".join(parts) or "none"
