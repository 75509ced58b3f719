"""The arena's adapters: trained by the study's own stage, or made without training where a negative asks for
it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from deltasae_ray import heartbeat
from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.finished import write_finished
from deltasae_ray.adapt.lora import new_lora, save_lora
from deltasae_ray.adapt.run import Training, adapt, trained, trainings
from deltasae_ray.adapt.text import split_text
from deltasae_ray.adapt.trainer import LoraTrainer
from deltasae_ray.arena.recipes import Recipe, recipe
from deltasae_ray.arena.texts import training_contexts
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, content_digest, read_tensors, weights_bytes
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import load_model, load_tokenizer
from deltasae_ray.models.random_lora import haar_rotated
from deltasae_ray.models.source import ModelSource, resolve_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.storage import Storage, digest

RANK = 4
BATCH = 8
"""Rows a step."""
ALPHA_OVER_RANK = 32.0
"""A model this small learns a reply in few steps at the product's largest rate only with a large alpha."""
_NEVER = 1e9
"""Standard errors at which training would stop early: it takes all its steps."""
_FAINT = 1e-5
"""Strength of every other adapter without effect; the rest cancel exactly."""


@dataclass(frozen=True)
class Arena:
    """Where adapters lie, and the base that they are of."""

    storage: Storage
    model: ModelConfig
    connect: Callable[[], None] | None = None
    """Joins or starts Ray, which trains what is missing; None: adapters are trained in this process."""

    @property
    def source(self) -> ModelSource:
        return resolve_model(self.model)


def organism(arena: Arena, wanted: Recipe) -> AdapterRef:
    """The adapter of a recipe: found in the storage, else made.

    Raises:
        AdapterError: the loss is no number, or the base lacks the modules that adapters are put on.
    """
    if wanted.family == "zero":
        return _without_effect(arena, wanted)
    if wanted.family == "rotated":
        return _rotated(arena, wanted)
    source = arena.source
    corpus = Corpus((), training_contexts(wanted, load_tokenizer(source.folder)))
    cfg = _config(corpus, wanted.steps)
    (training,) = trainings(source, corpus, cfg)
    if trained(arena.storage, training) is None:
        if arena.connect is None:
            _train_here(arena, source, corpus, cfg, training)
        else:
            arena.connect()
            adapt(arena.storage, arena.model, corpus, cfg, GangConfig())
    adapter = trained(arena.storage, training)
    assert adapter is not None, "an adapter is missing after its training"
    return _named(adapter, wanted)


def _config(corpus: Corpus, steps: int) -> AdaptConfig:
    """Steps are what is wanted; the trainer counts tokens, and only those that its loss is on."""
    text = split_text(corpus.adapt, BATCH)
    tokens = sum(text.batch(step, BATCH, 0).num_tokens for step in range(steps))
    return AdaptConfig(
        ranks=(RANK,),
        alpha_over_rank=ALPHA_OVER_RANK,
        batch_contexts=BATCH,
        max_tokens=tokens,
        stop_at_se=_NEVER,
    )


def _train_here(
    arena: Arena, source: ModelSource, corpus: Corpus, cfg: AdaptConfig, training: Training
) -> None:
    trainer = LoraTrainer(
        load_model(source.folder),
        split_text(corpus.adapt, cfg.batch_contexts),
        cfg,
        rank=training.rank,
        seed=training.seed,
    )
    while not trainer.progress.done:
        heartbeat.beat()
        trainer.advance()
    write_finished(trainer, arena.storage, training.key, _label(arena, source))


def _label(arena: Arena, source: ModelSource) -> str:
    """Label of the base model as `adapt` writes it: the folder's name, not its path."""
    return Path(arena.model.base).name if Path(arena.model.base).is_dir() else source.label


def _named(ref: AdapterRef, wanted: Recipe) -> AdapterRef:
    return AdapterRef(wanted.name, ref.key, ref.digest, ref.rank, ref.alpha, ref.seed, facts=ref.facts)


def _without_effect(arena: Arena, wanted: Recipe) -> AdapterRef:
    """Factors of an ordinary size whose products are zero, or, every other one, a random change of no
    size."""
    source, alpha = arena.source, ALPHA_OVER_RANK * RANK
    key = f"adapters/{digest({'arena': wanted.name, 'base': source.digest, 'rank': RANK, 'faint': _FAINT})}"
    if not arena.storage.exists(f"{key}/manifest.json"):
        model = new_lora(
            load_model(source.folder), rank=RANK, alpha=alpha, dropout=0.0, targets=AdaptConfig().targets,
            seed=wanted.seed,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(wanted.seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if ".lora_B." in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * (_FAINT if wanted.seed % 2 else 0.05))
                    if wanted.seed % 2 == 0:
                        p[:, RANK // 2 :] = -p[:, : RANK // 2]
                elif ".lora_A." in name and wanted.seed % 2 == 0:
                    p[RANK // 2 :] = p[: RANK // 2]
        with tempfile.TemporaryDirectory() as scratch:
            save_lora(model, Path(scratch), _label(arena, source))
            _keep(arena.storage, key, Path(scratch), alpha, wanted.seed)
    return _kept(arena.storage, key, wanted)


def _rotated(arena: Arena, wanted: Recipe) -> AdapterRef:
    """A taught adapter with Haar-random singular vectors and its own singular values, module by module."""
    origin = organism(arena, recipe(wanted.of))
    key = f"adapters/{digest({'arena': wanted.name, 'of': origin.digest})}"
    if not arena.storage.exists(f"{key}/manifest.json"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = arena.storage.get_folder(origin.key, Path(scratch) / "origin")
            rotated = Path(scratch) / "rotated"
            rotated.mkdir()
            (rotated / CONFIG).write_bytes((folder / CONFIG).read_bytes())
            (rotated / WEIGHTS).write_bytes(weights_bytes(haar_rotated(read_tensors(folder), wanted.seed)))
            _keep(arena.storage, key, rotated, origin.alpha, wanted.seed)
    return _kept(arena.storage, key, wanted)


def _keep(storage: Storage, key: str, folder: Path, alpha: float, seed: int) -> None:
    for file in (CONFIG, WEIGHTS):
        storage.write_bytes(f"{key}/{file}", (folder / file).read_bytes())
    manifest = {"digest": content_digest(folder), "rank": RANK, "alpha": alpha, "seed": seed, "facts": {}}
    storage.write_json(f"{key}/manifest.json", manifest)


def _kept(storage: Storage, key: str, wanted: Recipe) -> AdapterRef:
    manifest = storage.read_json(f"{key}/manifest.json")
    return AdapterRef(
        wanted.name, key, manifest["digest"], manifest["rank"], manifest["alpha"], manifest["seed"]
    )


def export_fp16(folder: Path, into: Path) -> str:
    """Copies an adapter in half precision, so that it is small enough to ship.

    Returns:
        Its digest.
    """
    into.mkdir(parents=True, exist_ok=True)
    (into / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    halved = {name: tensor.half() for name, tensor in read_tensors(folder).items()}
    save_file(halved, into / WEIGHTS, metadata={"format": "pt"})
    return content_digest(into)
