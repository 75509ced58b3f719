"""The stages of a study in order. A job runs up to its own; what is already done is only listed."""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace

from deltasae_ray.analyses.monitors.table import monitor_lines
from deltasae_ray.analyses.triggers.run import neutral_unit
from deltasae_ray.cli import say
from deltasae_ray.credentials import bare_root, bare_tracking_address
from deltasae_ray.errors import ConfigError, DictionaryError, PrecisionError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.run import FittedDictionary, failure, fit_points, fitted_points, keys_of
from deltasae_ray.fit.sizing import auto_d_sae
from deltasae_ray.runtime.autoscaler import possible_types
from deltasae_ray.runtime.lease import Lease, lease
from deltasae_ray.runtime.local import joins_cluster
from deltasae_ray.runtime.losses import restarts
from deltasae_ray.sae.identity import Trial
from deltasae_ray.storage import Storage
from deltasae_ray.study.clock import Clock
from deltasae_ray.study.cluster_check import (
    check_cluster,
    check_socket_paths,
    concurrent_trials,
    connect,
    resolve_root,
)
from deltasae_ray.study.compare import behaviour_of, compare, learnt
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.controls import control_points, keep_controls, with_settings
from deltasae_ray.study.disk_check import check_disk
from deltasae_ray.study.given_reference import check_references
from deltasae_ray.study.grid import grid_points, trials
from deltasae_ray.study.inputs import Study, adapters_of, harvest_of, open_study
from deltasae_ray.study.launched import with_launcher
from deltasae_ray.study.mlflow_runs import tracked
from deltasae_ray.study.monitors import watch
from deltasae_ray.study.plan import STAGES, Plan, make_plan
from deltasae_ray.study.plan_costs import size_of
from deltasae_ray.study.publish import write_results
from deltasae_ray.study.reference import make_reference, open_reference, plan_of
from deltasae_ray.study.remedies import check_fits
from deltasae_ray.study.root_layout import check_layout, mark_layout
from deltasae_ray.study.search import search
from deltasae_ray.study.spending import spending
from deltasae_ray.study.state import StudyState
from deltasae_ray.study.statements import size_lines
from deltasae_ray.study.streaming import fit_stream
from deltasae_ray.study.terminal_table import printed_table, printed_verdict
from deltasae_ray.study.token_check import check_tokens
from deltasae_ray.study.tune import sweep_trials
from deltasae_ray.tracking import Tracker


def run(stage: str, cfg: StudyConfig) -> None:
    """Runs the job `stage`: adapt, harvest, fit, diverge, or sweep, which is all of it with the fits as Tune
    trials."""
    if stage == "harvest" and cfg.storage.deltas == "stream":
        raise ConfigError(
            "storage.deltas=stream keeps no shards that jobs/harvest.py could leave behind: run"
            " jobs/sweep.py, or jobs/fit.py, which harvest and fit window by window"
        )
    cfg = _without_credentials(with_launcher(cfg, os.environ))
    storage = resolve_root(cfg.storage.root)
    Tracker(
        cfg.tracking, storage
    )  # an embedded store on an object store is refused before that is asked for anything
    check_socket_paths()
    if stage == "reference":
        _reference(cfg, storage)
        return
    if cfg.dry_run:
        _prepared(stage, cfg, storage)
        return
    with lease(storage, f"jobs/{stage}.py") as held:
        _run(stage, *_prepared(stage, cfg, storage), held)


def _reference(cfg: StudyConfig, storage: Storage) -> None:
    """Runs jobs/reference.py; a dry run ends with the plan."""
    check_layout(storage)
    study, points = open_reference(cfg, storage)
    say(f"Plan\n{plan_of(study, points)}\n")
    if cfg.dry_run:
        return
    with lease(storage, "jobs/reference.py"):
        mark_layout(storage)
        connect()
        check_cluster(cfg, storage)
        make_reference(study, points)


def _without_credentials(cfg: StudyConfig) -> StudyConfig:
    """The configuration with bare addresses: their keys and passwords are in the environment, and go neither
    to Ray nor to MLflow."""
    root = cfg.storage.root
    bare = bare_root(root, shared="@" in root and joins_cluster())
    return replace(
        cfg,
        storage=replace(cfg.storage, root=bare),
        tracking=replace(cfg.tracking, uri=bare_tracking_address(cfg.tracking.uri)),
    )


def _stages(stage: str) -> tuple[str, ...]:
    return STAGES if stage in ("sweep", "diverge") else STAGES[: STAGES.index(stage) + 1]


def _prepared(stage: str, cfg: StudyConfig, storage: Storage) -> tuple[Study, Plan]:
    """The study, checked, and its plan, printed."""
    check_layout(storage)
    study, stages = open_study(cfg, storage), _stages(stage)
    if "fit" in stages:
        check_tokens(cfg, study.corpus)
    if "elicit" in stages and cfg.elicit.samples:
        neutral_unit(study.corpus)
    plan = make_plan(study, stages)
    say(f"Plan\n{plan}\n")
    check_disk(study, plan)
    return study, plan


def _run(stage: str, study: Study, plan: Plan, held: Lease) -> None:
    mark_layout(study.storage)
    connect()
    check_cluster(study.cfg, study.storage)
    _check_machines(study)
    stages = _stages(stage)
    clock, state = Clock(), StudyState(by_tune=stage == "sweep")
    with spending(), tracked(study) if "fit" in stages else nullcontext() as log:
        for name in stages:
            held.check()
            if name == "fit":
                study = _resolved(study, state)
            if name in _STAGES:
                with clock.stage(name):
                    (fit_stream if name == "fit" and study.stream else _STAGES[name])(study, state)
            if name == "fit" and log:
                log.fitted(state)
                if not state.grid:
                    raise DictionaryError(
                        f"no trial could be fitted, {len(state.failed)} failed:"
                        f" {next(iter(state.failed.values()))}"
                    )
        if "diverge" in stages and log:
            with clock.stage("behaviour"):
                gate = behaviour_of(study, state)
            held.check()
            claims = {}
            if study.cfg.elicit.samples:
                with clock.stage("elicit"):
                    claims = learnt(study, state)
            held.check()
            with clock.stage("diverge"):
                findings = compare(study, state, gate, claims)
            held.check()
            with clock.stage("monitors") if study.monitors else nullcontext():
                watched = watch(study, state)
            held.check()
            with clock.stage("report"):
                write_results(study, state, findings, plan, clock, watched)
                views = log.compared(state, findings)
            say("\n" + "\n".join(printed_table(findings.rows, findings.reference, study.cfg.diverge.atoms)))
            for v in findings.verdicts:
                say("\n" + "\n".join(printed_verdict(v)))
            for line in size_lines(findings):
                say(f"\n{line}")
            if watched:
                say("\n" + "\n".join(monitor_lines(watched)))
            say(f"\nReport: {study.storage.address('report.html')}\n{_describe_views(study, views)}")
    say(f"\n{clock.beside(plan)}")
    if again := restarts():
        say(again)
    if state.failed:
        raise DictionaryError(
            f"{len(state.failed)} of {len(state.failed) + len(state.grid)} trials failed, and the same"
            " command tries them again; all others are unharmed:\n"
            + "\n".join(
                f"  {trial.name}: {error.strip().splitlines()[-1]}" for trial, error in state.failed.items()
            )
        )


def _describe_views(study: Study, views: dict[str, str]) -> str:
    """How to see the runs in MLflow."""
    uri = Tracker(study.cfg.tracking, study.storage).uri
    first = "" if study.cfg.tracking.uri else f", once `mlflow ui --backend-store-uri {uri}` runs"
    return "\n".join([f"MLflow{first}:", *(f"  {name}: {link}" for name, link in views.items())])


def _check_machines(study: Study) -> None:
    """Holds what each stage needs, memory of GPUs included, against the nodes that are there or may come.

    Raises:
        ResourceError: an actor that none of them can ever hold; with what to change.
    """
    kinds = possible_types()
    if kinds is not None:  # else nodes come on demand, and nobody says of what kind
        check_fits(study.cfg, size_of(study), kinds, [a.rank for a in study.given])


def _adapt(study: Study, state: StudyState) -> None:
    state.adapters = adapters_of(study)


def _harvest(study: Study, state: StudyState) -> None:
    state.harvest = harvest_of(study, state.adapters)
    check_references(study.storage, study.references, state.harvest)


def _resolved(study: Study, state: StudyState) -> Study:
    """The study with what its fits leave to the deltas (`d_sae=auto`) and to the cluster
    (`max_concurrent_trials=0`) filled in."""
    assert state.harvest is not None
    fit = study.cfg.fit
    if fit.d_sae == "auto":
        size = auto_d_sae(
            study.storage,
            state.harvest.key,
            [a.name for a in state.harvest.adapters if a.kind == "adapter"],
            study.layers,
        )
        say(f"fit.d_sae=auto: {size} latents")
        fit = replace(fit, d_sae=(size,))
        check_tokens(replace(study.cfg, fit=fit), study.corpus)
    if study.stream is not None:
        fit = replace(fit, max_concurrent_trials=1)  # no trials: all dictionaries go over a window together
    if not fit.max_concurrent_trials:
        fit = replace(
            fit, max_concurrent_trials=concurrent_trials(fit, len(trials(state.harvest.adapters, fit)))
        )
    return replace(study, cfg=replace(study.cfg, fit=fit))


def _fit(study: Study, state: StudyState) -> None:
    assert state.harvest is not None
    cfg, storage, key, layers = study.cfg.fit, study.storage, state.harvest.key, study.layers
    chosen, toy = study.cfg.diverge.chosen, study.cfg.reference.is_toy
    settings = dict.fromkeys(trials(state.harvest.adapters, cfg), cfg)
    if cfg.search != "none":
        settings, state.failed = search(storage, key, list(settings), layers, cfg)
    points = control_points(
        layers, cfg, state.harvest.adapters, chosen, toy_reference=toy, siblings=not study.has_siblings
    )
    controls = with_settings(points, settings, cfg)
    wanted = dict(controls)
    if not state.by_tune:
        wanted |= {p: c for t, c in settings.items() for p in grid_points(t, layers, cfg.seeds)}
    for each in dict.fromkeys(
        wanted.values()
    ):  # one pass over the shards; of a search, one for each of the settings that it found
        with suppress(
            DictionaryError, PrecisionError
        ):  # those that can be fitted are there; what is wrong with the others is on record
            alike = [p for p, c in wanted.items() if c == each]
            fit_points(storage, key, alike, each, description="fit controls" if state.by_tune else "fit")
    keep_controls(state, storage, controls)
    if state.by_tune:
        unfinished = {t: c for t, c in settings.items() if _dictionaries(study, state, t, c) is None}
        state.failed |= sweep_trials(storage, key, unfinished, layers, cfg)
    fitted = {t: _dictionaries(study, state, t, c) for t, c in settings.items()}
    state.grid = {t: dictionaries for t, dictionaries in fitted.items() if dictionaries is not None}
    state.failed |= {
        t: _error(study, state, t, settings[t])
        for t in settings
        if t not in state.grid and t not in state.failed
    }


def _dictionaries(
    study: Study, state: StudyState, trial: Trial, cfg: FitConfig
) -> list[FittedDictionary] | None:
    """All of a trial, or None if one is missing."""
    assert state.harvest is not None
    points = grid_points(trial, study.layers, cfg.seeds)
    done = fitted_points(study.storage, state.harvest.key, points, cfg)
    return [done[p] for p in points] if len(done) == len(points) else None


def _error(study: Study, state: StudyState, trial: Trial, cfg: FitConfig) -> str:
    """What is on record of a trial's dictionaries that could not be fitted."""
    assert state.harvest is not None
    keys = keys_of(study.storage, state.harvest.key, grid_points(trial, study.layers, cfg.seeds), cfg)
    return "; ".join(str(error) for key in keys.values() if (error := failure(study.storage, key)))


_STAGES: dict[str, Callable[[Study, StudyState], None]] = {"adapt": _adapt, "harvest": _harvest, "fit": _fit}
