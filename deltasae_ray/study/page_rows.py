"""What the page shows of rows: made in Ray tasks, one per adapter and layer, so that the driver never holds
activations."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltasae_ray.analyses.config import SEED
from deltasae_ray.analyses.leaf_spec import load_dictionary
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.report.inputs import LatentGroup, LayerFacts, Planted
from deltasae_ray.report.latents import encode_rows, latent_cards
from deltasae_ray.report.planted import find_planted
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage

TOP_CONTEXTS = 5
"""Contexts shown per latent, beside as many random ones."""


@dataclass(frozen=True)
class Deltas:
    """One adapter's deltas at one layer; travels to a task."""

    storage: Storage
    harvest_key: str
    adapter: str
    layer: int


def layer_facts(of: Deltas) -> LayerFacts:
    """Noise floor, strength and concentration of the deltas, on the evaluation tokens without BOS."""
    shards = open_harvest(of.storage, of.harvest_key)
    facts, hookpoint = shards.source(of.adapter).facts, f"blocks.{of.layer}.hook_resid_post"
    kept = shards.tokens("eval").used
    delta = shards.read(of.layer, of.adapter, split="eval")[kept].astype(np.float64)
    base = shards.read(of.layer, BASE, split="eval")[kept]
    energy = np.square(delta)
    total, by_token = energy.sum(), np.sort(energy.sum(axis=1))[::-1]
    most = max(1, round(len(by_token) / 1000))
    return LayerFacts(
        layer=of.layer,
        snr=facts["noise"][hookpoint]["snr"],
        relative_norm=float(np.linalg.norm(delta, axis=1).mean() / np.linalg.norm(base, axis=1).mean()),
        top_coordinates=float(np.sort(energy.sum(axis=0))[::-1][:3].sum() / total) if total else None,
        top_tokens=float(by_token[:most].sum() / total) if total else None,
        mean_share=float(np.square(delta.mean(axis=0)).sum() * len(delta) / total) if total else None,
        injected=facts.get("injected", {}).get(hookpoint),
    )


@dataclass(frozen=True)
class Latents:
    """One dictionary whose latents are shown; travels to a task."""

    storage: Storage
    harvest_key: str
    point: FitPoint
    dictionary: str
    """Folder below the storage root."""
    decode: Callable[[list[int]], str]
    """Tokens to text: a tokenizer's method."""
    opened: tuple[int, ...]
    """Latents that are shown with their contexts."""
    planted: bool
    """Whether a marker was written into the adapters' text, and is to be looked for."""


def latents(of: Latents) -> tuple[LatentGroup, Planted | None]:
    """Cards of the latents that are shown, and where the planted marker is among all of them."""
    p = of.point
    shards = open_harvest(of.storage, of.harvest_key)
    tokens = shards.tokens("eval")
    with tempfile.TemporaryDirectory() as scratch:
        dictionary = load_dictionary(of.storage, of.dictionary, Path(scratch))
    codes = encode_rows(dictionary, shards.read(p.layer, p.adapter, split="eval"), tokens)
    cards = latent_cards(
        codes,
        tokens,
        lambda ids: [of.decode([int(i)]) for i in ids],
        chosen=of.opened,
        contexts=TOP_CONTEXTS,
        seed=SEED,
    )
    one = vars(p.identity)
    group = LatentGroup(**one, alive=len(codes.order), cards=cards)
    planted = Planted(**one, finding=find_planted(codes, tokens, seed=SEED)) if of.planted else None
    return group, planted
