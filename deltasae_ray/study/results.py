"""From what the stages made to what the user takes away: tables, MLflow, and the inputs of the report
page."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import yaml

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.visibility.layer_figures import Sight
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.models.source import GEMMA_270M
from deltasae_ray.redaction import redacted
from deltasae_ray.report.inputs import AdapterFacts, CorpusFacts, Curve, CurvePoint, LayerFacts
from deltasae_ray.study.inputs import Study

LIBRARIES = (
    "deltasae-ray",
    "ray",
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "pyarrow",
    "mlflow",
    "numpy",
    "scipy",
)


def corpus_facts(study: Study) -> tuple[CorpusFacts, ...]:
    """Tokens and documents of every text by split."""
    splits = ("fit", "eval")
    return tuple(
        CorpusFacts(
            name=name,
            adapted_to=name == "domain",
            tokens={s: study.corpus.num_tokens(s, name) for s in splits},
            documents={s: study.corpus.num_documents(s, name) for s in splits},
        )
        for name in study.corpus.names
    )


def adapter_facts(
    harvest: Harvest,
    layers: dict[str, tuple[LayerFacts, ...]],
    behaviour: Mapping[str, Sequence[Behaviour]],
    demonstrated: dict[str, bool],
) -> tuple[AdapterFacts, ...]:
    """One entry per adapter, controls included."""
    return tuple(
        AdapterFacts(
            name=ref.name,
            rank=ref.rank,
            seed=ref.seed,
            control=ref.kind == "random",
            steps=ref.facts.get("steps"),
            tokens=ref.facts.get("tokens"),
            planted=None if ref.kind == "random" else ref.facts.get("planted"),
            losses=tuple(behaviour.get(ref.name, ())),
            demonstrated=None if ref.kind == "random" else demonstrated.get(ref.name),
            layers=layers[ref.name],
        )
        for ref in harvest.adapters
    )


def curves(fitted: Sequence[FittedDictionary], sights: Mapping[LeafSpec, Sight]) -> tuple[Curve, ...]:
    """All lines that no table holds."""
    return (*learning_curves(fitted), *calibration_curves(sights))


def learning_curves(fitted: Sequence[FittedDictionary]) -> tuple[Curve, ...]:
    """Training FVU and dead latents over steps of every dictionary of deltas."""
    curves = []
    for f in fitted:
        fvu, dead = (tuple(CurvePoint(x, y) for x, y in points) for points in (f.curve, f.dead))
        one, label = vars(f.point.identity), _label(f, fitted)
        curves += [Curve(**one, figure="learning", points=fvu, label=label)]
        curves += [Curve(**one, figure="dead_latents", points=dead, label=label)]
    return tuple(c for c in curves if c.points)


def calibration_curves(sights: Mapping[LeafSpec, Sight]) -> tuple[Curve, ...]:
    """Latents not visible over the share of features that a reference would hold, of every dictionary that
    has a scale."""
    known = {leaf: s.own.answer.calibration for leaf, s in sights.items()}
    return tuple(
        Curve(
            **vars(leaf.identity),
            figure="calibration",
            points=tuple(map(CurvePoint, curve.held, curve.middle)),
            label=f"d_sae {leaf.d_sae}",
        )
        for leaf, curve in known.items()
        if curve is not None
    )


def _label(one: FittedDictionary, others: Sequence[FittedDictionary]) -> str:
    """d_sae, and of k and architecture what is not the same in all."""
    parts = [f"d_sae {one.point.d_sae}"]
    parts += [f"k {one.point.k}"] if len({f.point.k for f in others}) > 1 else []
    parts += [one.point.architecture] if len({f.point.architecture for f in others}) > 1 else []
    return ", ".join(parts)


def what_was_run(study: Study, harvest: Harvest) -> dict[str, Any]:
    """The report's account of itself: configuration, digests, versions."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES} | {
        "python": platform.python_version()
    }
    digests = {"model": study.model.digest, "corpus": study.corpus.key, "harvest": harvest.key}
    digests |= {f"adapter {ref.name}": ref.digest for ref in harvest.adapters}
    return {
        "config": resolved_config(study),
        "digests": digests,
        "versions": versions,
        "created": f"{datetime.now():%Y-%m-%d %H:%M}",
    }


def resolved_config(study: Study) -> str:
    """The whole configuration without secrets, defaults included, as YAML that `config=` takes."""
    return yaml.safe_dump(redacted(_plain(asdict(study.cfg))), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def model_note(study: Study) -> str:
    return (
        "weights dequantised from Q4_K_M: what is measured is this model, not Google's release"
        if study.cfg.model.base == GEMMA_270M
        else ""
    )
