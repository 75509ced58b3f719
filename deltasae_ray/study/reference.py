"""A reference for any base model, from text: dictionaries of one recipe, each on a third of the documents.

The first is the reference. The others are its siblings: they differ from it by chance alone, so they
calibrate what is held against it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from deltasae_ray.cli import say
from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary, fit_points, fitted_points
from deltasae_ray.harvest.run import Harvest, harvest
from deltasae_ray.metrics.geometry.matching import max_cosine
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.identity import BASE
from deltasae_ray.sae.names import THIRDS
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.inputs import Study, open_study
from deltasae_ray.study.plan_costs import parameters, speed
from deltasae_ray.study.streaming import Windows
from deltasae_ray.study.token_check import num_documents, num_rows, tokens_to_fit

FOLDER = "reference"
"""Below the storage root: a folder a third, with layer_XX/ in each, and the card."""


@dataclass(frozen=True)
class WrittenDictionary:
    """A dictionary of the reference, as it was written."""

    folder: str
    """Below the storage root."""
    fitted: FittedDictionary
    dictionary: Dictionary


def open_reference(cfg: StudyConfig, storage: Storage) -> tuple[Study, list[FitPoint]]:
    """The text and model of a reference, checked, and the dictionaries to fit.

    Raises:
        ConfigError: more than one shape of dictionary, or a size that deltas would choose.
        CorpusError: a third of the documents has too little text.
    """
    fit = cfg.fit
    if fit.d_sae == "auto" or len(fit.d_sae) * len(fit.k) * len(fit.architecture) != 1:
        raise ConfigError(
            "a reference has one shape: give one size, one k and one architecture, as in fit.d_sae=[1024]"
            " fit.k=[32]"
        )
    if not cfg.corpus.fit_tokens:
        each = max(tokens_to_fit(fit), fit.steps * fit.batch_tokens)
        cfg = replace(cfg, corpus=replace(cfg.corpus, fit_tokens=len(THIRDS) * each))
    cfg = replace(cfg, adapters=(), fit=replace(fit, seeds=1, search="none"))
    study = open_study(cfg, storage)
    for third in THIRDS:
        rows, needed = num_rows(study.corpus, "fit", third), max(fit.d_sae)
        if rows < needed:
            raise ConfigError(
                f"a third of the fit split has {rows:,} tokens in"
                f" {num_documents(study.corpus, 'fit', third)} documents, and fit.d_sae={needed} needs"
                f" {needed:,}: give more documents, raise corpus.fit_tokens={cfg.corpus.fit_tokens}, or lower"
                " fit.d_sae"
            )
    shape = fit.d_sae[0], fit.k[0], fit.architecture[0]
    return study, [
        FitPoint(BASE, layer, *shape, seed=0, documents=third) for third in THIRDS for layer in study.layers
    ]


def plan_of(study: Study, points: Sequence[FitPoint]) -> str:
    """What it will take, as it is printed before work."""
    cfg, tokens = study.cfg, study.corpus.num_tokens()
    body = parameters(study)[2]
    harvest_s = 2.0 * tokens * body / speed(cfg, "harvest")
    step = 8.0 * cfg.fit.batch_tokens * study.model.d_model * max(cfg.fit.sizes)
    fit_s = len(points) * cfg.fit.steps * step / speed(cfg, "fit")
    stored = 2 * tokens * study.model.d_model * len(study.layers)
    shards = f"{stored / 1e6:,.0f} MB" if study.stream is None else "a window at a time"
    lines = {
        "model": f"{study.model.label}, {study.model.num_layers} layers of width {study.model.d_model}",
        "layers": ", ".join(map(str, study.layers)),
        "tokens": (
            f"fit {study.corpus.num_tokens('fit'):,} in {study.corpus.num_documents('fit'):,} documents,"
            f" dealt to {len(THIRDS)} dictionaries a layer; eval {study.corpus.num_tokens('eval'):,}"
        ),
        "dictionaries": (
            f"{len(points)} of {points[0].d_sae} latents, k {points[0].k}, {cfg.fit.steps:,} steps each"
        ),
        "shards": f"{shards} below {study.storage.root}",
        "minutes, about": f"harvest {harvest_s / 60:.1f}, fit {fit_s / 60:.1f}",
    }
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines.items())


def make_reference(study: Study, points: Sequence[FitPoint]) -> list[WrittenDictionary]:
    """Harvests base activations, fits the dictionaries and writes them with a card; what is done is listed.

    Raises:
        DictionaryError, PrecisionError: activations that no dictionary can be fitted to.
        StorageError: a root that cannot be written.
    """
    kept = harvest(
        replace(study.context, corpus=study.kept),
        study.model,
        study.cfg.harvest,
        (),
        study.hookpoints,
        random_lora=False,
    )
    study.storage.write_json(
        "study.json", {"harvest": kept.key, "sources": [BASE], "layers": list(study.layers)}
    )
    written = [_written(study, each) for each in _fitted(study, kept, points)]
    card = _card(study, written)
    study.storage.write_bytes(f"{FOLDER}/README.md", card.encode())
    say(f"\n{card}\nReference: reference.source={study.storage.address(f'{FOLDER}/{THIRDS[0]}')}")
    return written


def _fitted(study: Study, kept: Harvest, points: Sequence[FitPoint]) -> list[FittedDictionary]:
    cfg = study.cfg.fit
    if study.stream is None:
        return fit_points(study.storage, kept.key, points, cfg)
    Windows(study, kept, study.stream, (), tuple(points)).fit()
    done = fitted_points(study.storage, kept.key, points, cfg)
    return [done[p] for p in points]


def _written(study: Study, fitted: FittedDictionary) -> WrittenDictionary:
    """Copies a dictionary below `reference/`, with the model's name and digest in its metadata."""
    folder = f"{FOLDER}/{fitted.point.documents}/layer_{fitted.point.layer:02d}"
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        dictionary = Dictionary.load(study.storage.get_folder(fitted.key, place / "fitted"))
        made_on = {"model": study.model.name or study.model.label, "model_digest": study.model.digest}
        named = replace(dictionary, meta={**dictionary.meta, **made_on})
        study.storage.put_folder(named.save(place / "named"), folder)
    return WrittenDictionary(folder, fitted, named)


_CARD = """# A reference for {model}

{architecture} dictionaries of {d_sae} latents, k {k}, fitted in {steps:,} steps of {batch:,} tokens on base
activations of {tokens:,} tokens ({texts}). Each took a third of the documents: `{first}` is the reference,
the others are its siblings. Digest of the model's weights: {digest}.

FVU is the share of the activations' variance that a dictionary leaves over, on text held out from all.

| layer | folder | training rows | FVU | active latents | share alive |
|---|---|---|---|---|---|
{rows}

How far the dictionaries of a layer find the same directions: the mean over latents of the largest cosine
with another dictionary, over the pairs, and what random directions give.

| layer | mean largest cosine (random) |
|---|---|
{agreement}
"""


def _card(study: Study, written: Sequence[WrittenDictionary]) -> str:
    """What a user of the reference must know, as Markdown."""
    point, fit = written[0].fitted.point, study.cfg.fit
    rows = [
        f"| {m.fitted.point.layer} | `{m.folder.removeprefix(FOLDER + '/')}` | {m.fitted.rows:,} |"
        f" {m.fitted.metrics['fvu']:.3f} | {m.fitted.metrics['l0']:.1f} | {m.fitted.metrics['alive']:.2f} |"
        for m in written
    ]
    return _CARD.format(
        model=study.model.label,
        architecture=point.architecture,
        d_sae=point.d_sae,
        k=point.k,
        steps=fit.steps,
        batch=fit.batch_tokens,
        tokens=study.corpus.num_tokens("fit"),
        texts=", ".join(study.corpus.names),
        first=THIRDS[0],
        digest=study.model.digest,
        rows="\n".join(rows),
        agreement="\n".join(
            f"| {layer} | {_range_of(_agreement(layer, written))} |" for layer in study.layers
        ),
    )


def _agreement(layer: int, written: Sequence[WrittenDictionary]) -> list[Measure]:
    """How alike each two dictionaries of a layer are."""
    here = [m.dictionary for m in written if m.fitted.point.layer == layer]
    return [max_cosine(a.W_dec, b.W_dec) for a, b in combinations(here, 2)]


def _range_of(pairs: Sequence[Measure]) -> str:
    values = [p.value for p in pairs if p.value is not None]
    return f"{min(values):.3f} to {max(values):.3f} ({pairs[0].null:.3f})"
