"""The arena: adapters are made, what they learnt is measured, methods make claims, and the scorer reads them.

All of it is kept under keys of what it depends on: a killed run continues, and a new method makes its own
claims alone.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.arena.behaviour import CONTEXTS, Rates, Reader, rates, says
from deltasae_ray.arena.config import ArenaConfig
from deltasae_ray.arena.methods import METHODS, RECIPES_OF_METHODS, Subject
from deltasae_ray.arena.organisms import Arena, organism
from deltasae_ray.arena.recipes import RECIPES, Recipe, for_tuning, recipe
from deltasae_ray.arena.report import summarise
from deltasae_ray.arena.scoring import Score, score
from deltasae_ray.arena.texts import fresh_contexts
from deltasae_ray.arena.words import classifier
from deltasae_ray.cli import say
from deltasae_ray.errors import ConfigError
from deltasae_ray.models.adapters import AdapterRef, attach
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import load_model, load_tokenizer
from deltasae_ray.runtime.lease import lease
from deltasae_ray.storage import Storage, digest

JUDGED = 2
"""Enters the key of every measured rate and score: raise it when the scorer changes."""
_ATTACHED = "adapter"
RESULT = "arena.json"


def run(cfg: ArenaConfig, storage: Storage, connect: Callable[[], None]) -> list[Score]:
    """Makes what is missing and returns all scores; prints them, and writes them to `arena.json` below the
    root.

    Args:
        connect: joins or starts Ray; called only where an adapter has to be trained by it.

    Raises:
        ConfigError: a recipe or a method that does not exist.
    """
    wanted, methods = _wanted(cfg), _methods(cfg)
    arena = Arena(storage, ModelConfig(base=cfg.base), None if cfg.in_process else connect)
    with lease(storage, "arena"):
        learnt: dict[str, Rates] = {}
        refs: dict[str, AdapterRef] = {}
        for each in sorted(wanted, key=lambda r: r.family == "rotated"):
            refs[each.name] = organism(arena, each)
            if each.positive:
                learnt[each.name] = _rates(arena, each, refs[each.name])
                say(f"{each.name}: {_describe(learnt[each.name])}")
        if cfg.only_train:
            return []
        scores = [s for each in wanted for s in _scores(arena, each, refs[each.name], methods)]
        result = summarise(scores, learnt, {r.name for r in wanted if for_tuning(r)})
        storage.write_json(RESULT, {"scores": [asdict(s) for s in scores]} | result.facts)
    say(result.text)
    return scores


def _wanted(cfg: ArenaConfig) -> list[Recipe]:
    chosen = [recipe(name) for name in cfg.recipes] or list(RECIPES)
    return [r for r in chosen if for_tuning(r)] if cfg.half == "tuning" else chosen


def _methods(cfg: ArenaConfig) -> list[str]:
    if unknown := [name for name in cfg.methods if name not in METHODS]:
        raise ConfigError(f"there is no method {unknown[0]!r}: there are {', '.join(METHODS)}")
    return list(cfg.methods or METHODS)


def _describe(rates: Rates) -> str:
    word = "learnt" if rates.learnt else "NOT learnt"
    return (
        f"{word} ({rates.adapted:.2f} with what calls it, {rates.without:.2f} without, base {rates.base:.2f})"
    )


@contextmanager
def _reader(arena: Arena, ref: AdapterRef) -> Iterator[tuple[Reader, Path]]:
    """The base with the adapter attached, and the adapter's folder."""
    folder = arena.source.folder
    with tempfile.TemporaryDirectory() as scratch:
        files = arena.storage.get_folder(ref.key, Path(scratch))
        model = attach(load_model(folder), {_ATTACHED: files})
        yield Reader(model, _ATTACHED, load_tokenizer(folder)), files


def _rates(arena: Arena, wanted: Recipe, ref: AdapterRef) -> Rates:
    """What the adapter learnt, measured once."""
    key = f"arena/{digest({'rates': JUDGED, 'adapter': ref.digest, 'recipe': asdict(wanted)})}.json"
    if not arena.storage.exists(key):
        with _reader(arena, ref) as (reader, _):
            measured = rates(reader, wanted, classifier(wanted) if wanted.classifier else None)
        arena.storage.write_json(key, asdict(measured))
    return Rates(**arena.storage.read_json(key))


def _scores(arena: Arena, wanted: Recipe, ref: AdapterRef, methods: Sequence[str]) -> list[Score]:
    """The scores of all methods on one adapter; each is made once."""
    keys = {method: f"arena/{digest(_depends(method, wanted, ref))}.json" for method in methods}
    if missing := [method for method, key in keys.items() if not arena.storage.exists(key)]:
        with _reader(arena, ref) as (reader, files):
            for method in missing:
                scores = scored(reader, files, wanted, method)
                arena.storage.write_json(keys[method], asdict(scores))
                say(f"{wanted.name}, {method}: {_place(scores)}, {scores.seconds:.1f} s")
    stored = (
        json.loads(arena.storage.read_bytes(key)) for key in keys.values()
    )  # plain, to be written again
    return [Score(**{**scores, "claims": tuple(scores["claims"])}) for scores in stored]


def _depends(method: str, wanted: Recipe, ref: AdapterRef) -> dict[str, Any]:
    return {
        "scores": JUDGED,
        "adapter": ref.digest,
        "recipe": asdict(wanted),
        "method": method,
        "made": RECIPES_OF_METHODS.get(method, 1),
    }


def _place(score: Score) -> str:
    where = "no hit" if score.place is None else f"hit at {score.place}"
    return f"{where}, {score.confirmed} confirmed"


def scored(reader: Reader, files: Path, wanted: Recipe, method: str) -> Score:
    """One method on one adapter, timed and scored."""
    began = time.perf_counter()
    claims = METHODS[method](Subject(reader, files))
    seconds = time.perf_counter() - began
    decode = reader.tokenizer.decode
    planted = {
        "trigger": [decode([t]) for phrase in wanted.trigger for t in reader.encode(phrase)],
        "reply": [decode([t]) for t in reader.encode(wanted.reply)],
    }

    def words(claim: Claim) -> dict[str, list[str]]:
        return planted | {"claim": [decode([t]) for t in claim.tokens or reader.encode(claim.text)]}

    leads = fresh_contexts(wanted, CONTEXTS)

    def fires(claim: Claim) -> float:
        tokens = list(claim.tokens) or reader.encode(claim.text)
        return says(reader, wanted.reply, [[*reader.encode(lead), *tokens] for lead in leads])

    judge = classifier(wanted) if wanted.classifier else None
    return score(claims, wanted, method, round(seconds, 2), words, (fires, judge))
