"""A study in MLflow: a run for the sweep, each trial, each adapter and each dictionary (leaf). Fit logs what
it knows; the comparison adds to the same runs later."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltasae_ray.analyses.table import leaf_figures
from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.analyses.triggers.run import CLAIMS
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.key import harvest_key
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.identity import RANDOM, Trial
from deltasae_ray.storage import Storage, digest
from deltasae_ray.study.compare import Findings, reference_name
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.results import resolved_config
from deltasae_ray.study.state import StudyState
from deltasae_ray.tracking import RunLog, Tracker, TrialPoint

CONFIRMED = "trigger.confirmed"
"""Metric of a run: triggers of its adapter, or of all adapters of the study, that held in held-out
contexts."""
SHOWN = ("visible_share", "missing_share", "monitor_r2", "coactivation", "max_cosine_weighted")
"""Figures of a dictionary that are metrics of its run. All others are in the run's table: MLflow's page makes
a column of every metric."""
FITTED = ("fvu", "l0", "alive")
"""Of what fitting measured, the same."""
TABLE = "measures.json"
TEXTS = 3
"""Texts whose losses are metrics of an adapter's run: eight columns each."""


@contextmanager
def tracked(study: Study) -> Iterator["StudyLog"]:
    """The sweep run; it ends FAILED if the study does, and no run below it stays RUNNING."""
    tracker = Tracker(study.cfg.tracking, study.storage)
    content = harvest_key(study.kept, study.model, study.cfg.harvest.precision)
    with tracker.sweep(f"{study.model.label} · {content[-8:]}", content) as run:
        run.log_text(resolved_config(study), "config.yaml")
        if study.corpus.notes:
            run.log_text("\n".join(study.corpus.notes) + "\n", "corpus.txt")
        run.log_datasets({name: _dataset(study, name) for name in study.corpus.names})
        yield StudyLog(study, tracker, run)


@dataclass(frozen=True)
class StudyLog:
    """Writes the results of a study's stages to its runs."""

    study: Study
    tracker: Tracker
    run: RunLog

    def fitted(self, state: StudyState) -> None:
        """Held-out figures, learning curve and files of every dictionary; trials that failed end as FAILED
        runs with their error."""
        for trial, error in state.failed.items():
            self.tracker.failed_trial(_point(trial, state), self.run.run_id, error)
        reference = reference_name(self.study, state)
        for trial, dictionaries in state.grid.items():
            with self.tracker.trial(_point(trial, state), self.run.run_id) as above:
                for f in dictionaries:
                    with self.tracker.leaf(
                        _point(trial, state).leaf(f.point.layer, f.point.seed, reference), above.run_id
                    ) as leaf:
                        leaf.log_measures(
                            {name: Measure(f.metrics[name], n=f.rows) for name in FITTED if name in f.metrics}
                        )
                        leaf.log_curve("train_fvu", list(f.curve))
                        leaf.log_curve("dead_latents", list(f.dead))
                        _upload(leaf, self.study.storage, f)

    def compared(self, state: StudyState, findings: Findings) -> dict[str, str]:
        """The leading figures and a table of all on every leaf, layer means on the trials, tables and report
        on the sweep.

        Returns:
            Name of a saved view of MLflow's page → the link that opens it.
        """
        for trial, dictionaries in state.grid.items():
            leaves = leaf_figures(findings.rows, trial.adapter)
            figures = {(leaf.layer, leaf.seed): leaf.measures for leaf in leaves if leaf.trial == trial}
            with self.tracker.trial(_point(trial, state), self.run.run_id) as above:
                for f in dictionaries:
                    point = _point(trial, state).leaf(f.point.layer, f.point.seed, findings.reference)
                    with self.tracker.leaf(point, above.run_id) as leaf:
                        measures = figures[f.point.layer, f.point.seed]
                        leaf.log_measures(_shown(measures))
                        leaf.log_table([_row(name, m) for name, m in measures.items()], TABLE)
                above.log_layer_means(
                    {f"layer {layer} seed {seed}": _shown(m) for (layer, seed), m in figures.items()}
                )
        behaviours = self._adapters(state, findings)
        if findings.claims:
            mine = [c for name, group in findings.claims.items() if name != RANDOM for c in group]
            self.run.log_measures({CONFIRMED: _confirmed(mine)})
        self.run.set_tags({f"verdict.{v.adapter}": v.text for v in findings.verdicts})
        with tempfile.TemporaryDirectory() as scratch:
            for name in (
                "report.html",
                "report.json",
                "divergence.json",
                "divergence.parquet",
                "latents.parquet",
                *([CLAIMS] if findings.claims else []),
                "weights.parquet",
                *self.study.storage.list("figures"),
            ):
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.study.storage.read_bytes(name))
            self.run.log_artifacts(Path(scratch))
        names = {row.metric for row in findings.rows if row.value is not None and not row.corpus}
        figure = next((name for name in SHOWN if name in names), SHOWN[0])
        return self.tracker.save_views(self.study.model.label, figure, behaviours)

    def _adapters(self, state: StudyState, findings: Findings) -> list[str]:
        """A run for each adapter with what it does to predictions; returns its metrics' names."""
        ranks = {a.name: a.rank for a in state.harvest.adapters} if state.harvest is not None else {}
        verdicts = {v.adapter: v.label for v in findings.verdicts}
        names: dict[str, None] = {}
        for adapter, texts in findings.behaviour.items():
            measures = {f"loss_change.{b.corpus}": b.loss_change for b in texts[:TEXTS]}
            measures |= {f"kl.{b.corpus}": b.kl for b in texts[:TEXTS]}
            if findings.claims:
                measures[CONFIRMED] = _confirmed(findings.claims.get(adapter, ()))
            names |= dict.fromkeys(measures)
            with self.tracker.adapter(adapter, ranks[adapter], self.run.run_id) as run:
                run.log_measures(measures)
                run.set_tags({"verdict": verdicts[adapter]} if adapter in verdicts else {})
        return list(names)


def _confirmed(claims: Sequence[Claim]) -> Measure:
    """How many triggers are confirmed."""
    return Measure(float(sum(c.confirmed and c.kind == "trigger" for c in claims)), n=len(claims))


def _point(trial: Trial, state: StudyState) -> TrialPoint:
    assert state.harvest is not None
    ref = next(a for a in state.harvest.adapters if a.name == trial.adapter)
    return TrialPoint(
        **vars(trial), rank=ref.rank, content=digest({"harvest": state.harvest.key, "adapter": ref.digest})
    )


def _shown(measures: Mapping[str, Measure]) -> dict[str, Measure]:
    return {name: measures[name] for name in SHOWN if name in measures}


def _row(name: str, m: Measure) -> dict[str, object]:
    """A measure as a row of the run's table."""
    low, high = m.ci or (None, None)
    return {
        "metric": name, "value": m.value, "null": m.null, "ceiling": m.ceiling,
        "ci_low": low, "ci_high": high, "p": m.p, "kappa": m.kappa, "n": m.n, "reason": m.reason,
    }  # fmt: skip


def _dataset(study: Study, name: str) -> tuple[str, dict[str, int]]:
    """Digest of a text as it was cut, and its tokens and documents by split."""
    counts = {f"{s}_tokens": study.corpus.num_tokens(s, name) for s in ("fit", "eval")}
    counts |= {f"{s}_documents": study.corpus.num_documents(s, name) for s in ("fit", "eval")}
    return digest({"corpus": study.corpus.key, "name": name}), counts


def _upload(leaf: RunLog, storage: Storage, f: FittedDictionary) -> None:
    one = vars(f.point.identity)
    with tempfile.TemporaryDirectory() as scratch:
        leaf.log_model("dictionary", lambda: storage.get_folder(f.key, Path(scratch)), f.digest, one)
