"""A study whose inputs were read and checked: all that can fail early has had its chance before the first
long stage."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from deltasae_ray.adapt.run import adapt
from deltasae_ray.analyses.monitors.kept import MonitorRef, cut_notes, keep_monitors
from deltasae_ray.corpus.corpus import ADAPT_TOKENS, Corpus, build_corpus
from deltasae_ray.corpus.stream import Stream, in_windows
from deltasae_ray.corpus.template import TEMPLATE_FILES, set_template
from deltasae_ray.errors import AdapterError, ConfigError
from deltasae_ray.harvest.run import Harvest, harvest
from deltasae_ray.hookpoints import Hookpoint, at_sites, resolve
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, read_config
from deltasae_ray.models.adapters import AdapterRef, import_adapter, shown_name
from deltasae_ray.models.hub import HubName, why_not_had
from deltasae_ray.models.load import check_blocks, empty_model, load_tokenizer
from deltasae_ray.models.source import ModelSource, resolve_model
from deltasae_ray.models.stream import check_width
from deltasae_ray.runtime.config import check_sharding
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage
from deltasae_ray.study.cluster_check import join_to_read
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.given_reference import keep_references
from deltasae_ray.study.token_check import tokens_to_fit


@dataclass(frozen=True)
class Study:
    """The resolved inputs of a study."""

    cfg: StudyConfig
    storage: Storage
    model: ModelSource
    corpus: Corpus
    hookpoints: tuple[Hookpoint, ...]
    given: tuple[AdapterRef, ...]
    """Adapters the user brought, checked and copied into the storage; empty where they are to be trained."""
    references: dict[int, str]
    """Layer → folder below the storage root of the pretrained dictionary, copied there; empty for a toy
    reference, which is fitted."""
    siblings: dict[int, tuple[str, ...]]
    """Layer → other dictionaries of the reference's release, copied likewise; empty where there are none."""
    stream: Stream | None = None
    """The training text in windows, where storage.deltas=stream."""
    monitors: tuple[MonitorRef, ...] = ()
    """The user's monitors, checked and copied into the storage."""

    @property
    def kept(self) -> Corpus:
        """The text whose deltas stay stored: all of it, or of a stream the first window and the evaluation
        split."""
        return self.corpus if self.stream is None else self.stream.resident

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(h.layer for h in self.hookpoints)

    @property
    def has_siblings(self) -> bool:
        """Whether the reference's release has siblings of it at every layer, so that none are fitted."""
        return all(self.siblings.get(layer) for layer in self.layers)

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters under study, given or to be trained."""
        ranks, seeds = self.cfg.adapt.ranks, self.cfg.adapt.seeds
        return [a.name for a in self.given] or [f"r{rank}" for rank in ranks for _ in range(seeds)]

    @property
    def context(self) -> StageContext:
        """What its stages share that run the model over text."""
        return StageContext(self.storage, self.cfg.model, self.model.digest, self.corpus, self.cfg.gangs)


def open_study(cfg: StudyConfig, storage: Storage) -> Study:
    """Finds the model, checks hookpoints and adapters against it, and cuts the text. For a dry run it writes
    nothing, and leaves weights on the hub where they are; what only they can show is then not checked.

    Raises:
        ConfigError, ModelError, HookpointError, AdapterError, CorpusError: each names the word to change.
    """
    if not cfg.adapters and not cfg.adapt.ranks:
        raise ConfigError(
            "no adapters given and adapt.ranks is empty: set adapters=[folder,…] or adapt.ranks=[4,16]"
        )
    check_sharding(cfg.gangs, cfg.model)
    if cfg.model.sharding != "none" and cfg.elicit.samples:
        raise ConfigError(
            f"model.sharding={cfg.model.sharding} and elicit.samples={cfg.elicit.samples} exclude each other:"
            " text is sampled token by token from a whole model. Set elicit.samples=0"
        )
    model = resolve_model(cfg.model, weights=not cfg.dry_run)
    if Path(
        cfg.model.base
    ).is_dir():  # gangs and workers run in folders of Ray's: a relative path would point elsewhere there
        cfg = replace(cfg, model=replace(cfg.model, base=str(model.folder)))
    if not cfg.corpus.fit_tokens:
        cfg = replace(cfg, corpus=replace(cfg.corpus, fit_tokens=tokens_to_fit(cfg.fit)))
    empty = empty_model(model.folder, trust_remote_code=cfg.model.trust_remote_code)
    check_blocks(empty, model.num_layers)
    check_width(empty, model.d_model)
    hookpoints = resolve(cfg.layers, model.num_layers)
    monitors = keep_monitors(
        storage, cfg.monitors, model.d_model, at_sites(hookpoints, cfg.harvest.sites), copy=not cfg.dry_run
    )
    references, beside = ({}, {}) if cfg.reference.is_toy else keep_references(cfg, storage, model)
    tokenizer = load_tokenizer(model.folder, trust_remote_code=cfg.model.trust_remote_code)
    chosen = (
        set_template(cfg.corpus, tokenizer, _template_folders(cfg)) if cfg.corpus.format == "chat" else ()
    )
    if cfg.adapters and cfg.corpus.marker_share:
        left_aside = (
            f"corpus.marker_share={cfg.corpus.marker_share:g} is left aside: given adapters were trained"
            " without the marker"
        )
        cfg, chosen = replace(cfg, corpus=replace(cfg.corpus, marker_share=0.0)), (*chosen, left_aside)
    corpus = build_corpus(cfg.corpus, tokenizer, adapt_tokens=_adapt_tokens(cfg), join=join_to_read)
    cut = cut_notes(cfg.monitors, tokenizer, cfg.corpus.context_len)
    corpus = replace(corpus, notes=(*chosen, *cut, *corpus.notes))
    stream = stream_of(cfg, corpus)
    given = _import(cfg, storage, empty) if cfg.adapters else ()
    return Study(cfg, storage, model, corpus, hookpoints, given, references, beside, stream, monitors)


def _adapt_tokens(cfg: StudyConfig) -> int:
    """Most tokens set apart to train adapters on: a third more than one trains on, since some of them are
    held out."""
    return max(ADAPT_TOKENS, -(-4 * cfg.adapt.max_tokens // 3))


def stream_of(cfg: StudyConfig, corpus: Corpus) -> Stream | None:
    """The training text in windows, where deltas are streamed.

    Raises:
        ConfigError: settings that contradict a stream; each names the words to change.
    """
    if cfg.storage.deltas == "stored":
        return None
    fit, tokens = cfg.fit, corpus.num_tokens("fit")
    if fit.search != "none":
        raise ConfigError(
            f"fit.search={fit.search} and storage.deltas=stream exclude each other: every candidate would"
            " need a harvest of its own. Search with storage.deltas=stored on fewer corpus.fit_tokens, then"
            " stream with what was found"
        )
    if fit.steps * fit.batch_tokens < tokens:
        raise ConfigError(
            f"fit.steps={fit.steps} of fit.batch_tokens={fit.batch_tokens} see"
            f" {fit.steps * fit.batch_tokens:,} tokens, fewer than the {tokens:,} of the fit split, which"
            " would be harvested for nothing: raise fit.steps, or lower corpus.fit_tokens"
        )
    if cfg.storage.window_tokens < fit.batch_tokens:
        raise ConfigError(
            f"storage.window_tokens={cfg.storage.window_tokens} is below fit.batch_tokens={fit.batch_tokens}:"
            " a window must fill a batch"
        )
    return in_windows(corpus, cfg.storage.window_tokens, cfg.corpus.seed)


def adapters_of(study: Study) -> tuple[AdapterRef, ...]:
    """The adapters under study: given, or trained now (those already trained are only listed)."""
    if study.given:
        return study.given
    cfg = study.cfg
    return tuple(adapt(study.storage, cfg.model, study.corpus, cfg.adapt, cfg.gangs))


def harvest_of(study: Study, adapters: tuple[AdapterRef, ...]) -> Harvest:
    """The study's harvest, finished, and named in study.json, which readers of the root start from."""
    cfg = study.cfg
    random_lora = "random_lora" in cfg.diverge.chosen
    done = harvest(
        replace(study.context, corpus=study.kept),
        study.model,
        cfg.harvest,
        adapters,
        study.hookpoints,
        random_lora=random_lora,
    )
    sources = [BASE, *(ref.digest for ref in done.adapters)]
    study.storage.write_json(
        "study.json", {"harvest": done.key, "sources": sources, "layers": list(study.layers)}
    )
    return done


def _import(cfg: StudyConfig, storage: Storage, empty: nn.Module) -> tuple[AdapterRef, ...]:
    refs: list[AdapterRef] = []
    for place in cfg.adapters:
        folder, name = Path(place), place.partition("@")[0].split("/")[-1]
        if folder.is_dir():
            ref = import_adapter(
                storage,
                folder,
                Path(os.path.abspath(folder)).name,
                empty,
                base=cfg.model.base,
                copy=not cfg.dry_run,
            )
        elif cfg.dry_run:
            config = read_config(_download(place, [CONFIG]), weights=False)
            ref = AdapterRef(
                shown_name(name), "", "", rank=int(config["r"]), alpha=float(config["lora_alpha"])
            )
        else:
            ref = import_adapter(
                storage, _download(place, [CONFIG, WEIGHTS]), name, empty, base=cfg.model.base
            )
        if any(ref.name == other.name for other in refs):
            raise AdapterError(f"adapters={list(cfg.adapters)}: two are called {ref.name!r}; rename a folder")
        refs.append(ref)
    return tuple(refs)


def _template_folders(cfg: StudyConfig) -> dict[str, Path]:
    """Given adapter → the folder that may hold its chat template."""
    return {
        place: Path(place) if Path(place).is_dir() else _download(place, TEMPLATE_FILES)
        for place in cfg.adapters
    }


def _download(place: str, files: list[str]) -> Path:
    try:
        return HubName.of(place).fetch(files)
    except (
        Exception
    ) as e:  # the hub client raises dozens of types, and offline, gated and misspelt all mean: not to be had
        raise AdapterError(f"adapter {place!r} {why_not_had(place, e)}") from e
