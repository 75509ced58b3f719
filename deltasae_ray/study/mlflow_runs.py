"""A study in MLflow: sweep run → trial run → leaf run. Fit logs what it knows; the comparison adds to the
same runs later."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltasae_ray.analyses.table import leaf_figures
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.run import harvest_key
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.identity import Trial
from deltasae_ray.storage import Storage, digest
from deltasae_ray.study.compare import Findings, reference_name
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.results import resolved_config
from deltasae_ray.study.state import Made
from deltasae_ray.tracking import RunLog, Tracker, TrialPoint


@contextmanager
def tracked(study: Study) -> Iterator["StudyLog"]:
    """The sweep run; it ends FAILED if the study does, and no run below it stays RUNNING."""
    tracker = Tracker(study.cfg.tracking, study.storage)
    content = harvest_key(study.kept, study.model, study.cfg.harvest.precision)
    with tracker.sweep(f"{study.model.label} · {content[-8:]}", content) as run:
        run.log_text(resolved_config(study), "config.yaml")
        if study.corpus.notes:
            run.log_text("\n".join(study.corpus.notes) + "\n", "corpus.txt")
        yield StudyLog(study, tracker, run)


@dataclass(frozen=True)
class StudyLog:
    """Writes the results of a study's stages to its runs."""

    study: Study
    tracker: Tracker
    run: RunLog

    def fitted(self, made: Made) -> None:
        """Held-out figures, learning curve and files of every dictionary; trials that failed end as FAILED
        runs with their error."""
        for trial, error in made.failed.items():
            self.tracker.failed_trial(_point(trial, made), self.run.run_id, error)
        reference = reference_name(self.study, made)
        for trial, dictionaries in made.grid.items():
            with self.tracker.trial(_point(trial, made), self.run.run_id) as above:
                for f in dictionaries:
                    with self.tracker.leaf(
                        _point(trial, made).leaf(f.point.layer, f.point.seed, reference), above.run_id
                    ) as leaf:
                        leaf.log_measures(
                            {name: Measure(value, n=f.rows) for name, value in f.metrics.items()}
                        )
                        leaf.log_curve("train_fvu", list(f.curve))
                        leaf.log_curve("dead_latents", list(f.dead))
                        _upload(leaf, self.study.storage, f)

    def compared(self, made: Made, found: Findings) -> None:
        """Every measure of every leaf, layer means on the trials, tables and report on the sweep."""
        for trial, dictionaries in made.grid.items():
            leaves = leaf_figures(found.rows, trial.adapter)
            figures = {(leaf.layer, leaf.seed): leaf.measures for leaf in leaves if leaf.trial == trial}
            with self.tracker.trial(_point(trial, made), self.run.run_id) as above:
                for f in dictionaries:
                    point = _point(trial, made).leaf(f.point.layer, f.point.seed, found.reference)
                    with self.tracker.leaf(point, above.run_id) as leaf:
                        leaf.log_measures(figures[f.point.layer, f.point.seed])
                above.log_layer_means(
                    {f"layer {layer} seed {seed}": m for (layer, seed), m in figures.items()}
                )
        self.run.set_tags({f"verdict.{v.adapter}": v.text for v in found.verdicts})
        with tempfile.TemporaryDirectory() as scratch:
            for name in (
                "report.html",
                "report.json",
                "divergence.json",
                "divergence.parquet",
                "latents.parquet",
                "weights.parquet",
                *self.study.storage.list("figures"),
            ):
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.study.storage.read_bytes(name))
            self.run.log_artifacts(Path(scratch))


def _point(trial: Trial, made: Made) -> TrialPoint:
    assert made.harvest is not None
    ref = next(a for a in made.harvest.adapters if a.name == trial.adapter)
    return TrialPoint(
        **vars(trial), rank=ref.rank, content=digest({"harvest": made.harvest.key, "adapter": ref.digest})
    )


def _upload(leaf: RunLog, storage: Storage, f: FittedDictionary) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        leaf.log_content(lambda: storage.get_folder(f.key, Path(scratch)), "dictionary", f.digest)
