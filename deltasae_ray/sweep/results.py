"""From what the stages made to what the user takes away: tables, MLflow, and the inputs of the report page."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
import yaml

from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.source import GEMMA_270M
from deltasae_ray.report.inputs import AdapterFacts, CorpusFacts, Curve, CurvePoint, LatentGroup, LayerFacts, LossChange, Planted
from deltasae_ray.report.latents import encode_rows, latent_cards
from deltasae_ray.report.planted import find_planted
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.shards import ShardSet
from deltasae_ray.sweep.study import Study

LIBRARIES = ("deltasae-ray", "ray", "torch", "transformers", "peft", "deepspeed", "pyarrow", "mlflow", "numpy", "scipy")


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


def layer_facts(ref: AdapterRef, shards: ShardSet, layers: Sequence[int]) -> tuple[LayerFacts, ...]:
    """Noise floor, strength and concentration of one adapter's deltas, on the evaluation tokens without BOS."""
    noise, injected = shards.source(ref.name).facts["noise"], shards.source(ref.name).facts.get("injected", {})
    kept = shards.tokens("eval").position > 0
    facts = []
    for layer in layers:
        delta = shards.read(layer, ref.name, split="eval")[kept].astype(np.float64)
        base = shards.read(layer, "base", split="eval")[kept]
        energy = np.square(delta)
        total, by_token = energy.sum(), np.sort(energy.sum(axis=1))[::-1]
        most = max(1, round(len(by_token) / 1000))
        facts.append(
            LayerFacts(
                layer=layer,
                snr=noise[f"blocks.{layer}.hook_resid_post"]["snr"],
                relative_norm=float(np.linalg.norm(delta, axis=1).mean() / np.linalg.norm(base, axis=1).mean()),
                top_coordinates=float(np.sort(energy.sum(axis=0))[::-1][:3].sum() / total) if total else None,
                top_tokens=float(by_token[:most].sum() / total) if total else None,
                mean_share=float(np.square(delta.mean(axis=0)).sum() * len(delta) / total) if total else None,
                injected=injected.get(f"blocks.{layer}.hook_resid_post"),
            )
        )
    return tuple(facts)


def adapter_facts(
    study: Study, harvest: Harvest, shards: ShardSet, changes: dict[str, tuple[LossChange, ...]], demonstrated: dict[str, bool]
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
            losses=changes.get(ref.name, ()),
            demonstrated=None if ref.kind == "random" else demonstrated.get(ref.name),
            layers=layer_facts(ref, shards, study.layers),
        )
        for ref in harvest.adapters
    )


def latent_groups(
    study: Study, shards: ShardSet, shown: Sequence[FittedDictionary], load: Callable[[str], Dictionary], text: Callable
) -> tuple[tuple[LatentGroup, ...], tuple[Planted, ...]]:
    """Latent cards and the planted marker, for one dictionary per adapter and layer."""
    tokens = shards.tokens("eval")
    cfg = study.cfg.diverge
    groups, planted = [], []
    for fitted in shown:
        p, dictionary = fitted.point, load(fitted.key)
        codes = encode_rows(dictionary, shards.read(p.layer, p.adapter, split="eval"), tokens)
        cards = latent_cards(codes, tokens, text, latents=cfg.latents, contexts=cfg.top_contexts, seed=cfg.seed)
        groups.append(LatentGroup(p.adapter, p.layer, p.d_sae, p.k, p.seed, alive=len(codes.order), cards=cards))
        if study.cfg.corpus.marker_share > 0 and not study.given:
            planted.append(Planted(p.adapter, p.layer, p.d_sae, find_planted(codes, tokens, seed=cfg.seed)))
    return tuple(groups), tuple(planted)


def learning_curves(fitted: Sequence[FittedDictionary]) -> tuple[Curve, ...]:
    """Training FVU over steps of every dictionary of deltas."""
    return tuple(
        Curve("learning", f.point.adapter, f.point.layer, tuple(CurvePoint(x, y) for x, y in f.curve), f"d_sae {f.point.d_sae}")
        for f in fitted
        if f.curve
    )


def what_was_run(study: Study, harvest: Harvest) -> dict[str, Any]:
    """The report's account of itself: configuration, digests, versions."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    digests = {"model": study.model.digest, "corpus": study.corpus.key, "harvest": harvest.key}
    digests |= {f"adapter {ref.name}": ref.digest for ref in harvest.adapters}
    return {"config": resolved_config(study), "digests": digests, "versions": versions, "created": f"{datetime.now():%Y-%m-%d %H:%M}"}


def resolved_config(study: Study) -> str:
    """The whole configuration, defaults included, as YAML that `config=` takes."""
    return yaml.safe_dump(_plain(asdict(study.cfg)), sort_keys=False)


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
