"""Probes on real text classes, and adapters that move activations and leave what the probes read."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from deltasae_ray.analyses.monitors.folder import TEXTS, LabelledText, write_monitor
from deltasae_ray.analyses.monitors.monitor import Monitor, Reading
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import build_corpus
from deltasae_ray.harvest.key import harvest_key
from deltasae_ray.harvest.worker import HarvestFactory, HarvestPlan
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef, import_adapter
from deltasae_ray.models.capture import residuals
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import blocks, empty_model, load_model, load_tokenizer
from deltasae_ray.models.source import resolve_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.storage import Storage
from tests.tiny import save_adapter

LAYER, LENGTH = 1, 60
AT = Hookpoint(LAYER)
"""Where the tiny model's probes read."""
DATA = Path(__file__).parents[3] / "deltasae_ray" / "corpus" / "data"
READS: dict[str, Reading] = {
    "capitals": "mean", "question": "last", "exclaim": "last", "scripture": "mean", "manual": "mean",
}  # fmt: skip
TINY = ("capitals", "question", "exclaim")
"""Probes of the tiny model, whose tokens are bytes."""
STRENGTH = 0.1
"""Of harmless adapters: about ‖δ‖/‖h‖."""


@cache
def passages(name: str, count: int, length: int = LENGTH) -> tuple[str, ...]:
    """Passages of a packaged text, evenly over it."""
    text = " ".join(" ".join(_documents(name)).split())
    starts = np.linspace(0, len(text) - 2 * length, count).astype(int)
    return tuple(text[text.index(" ", s) + 1 :][:length] for s in starts)


def _documents(name: str) -> list[str]:
    if name == "pydoc":
        return [text for _, text in sorted(topics.items())]
    return [json.loads(line)["text"] for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def sentences(end: str, count: int) -> list[str]:
    """Ends of different sentences of Shakespeare that end so."""
    text = " ".join(passages("shakespeare", 6000))
    for mark in "?!.":
        text = text.replace(mark, f"{mark}|")
    found = (s.strip()[-40:] for s in text.split("|"))
    return list(dict.fromkeys(s for s in found if len(s) > 20 and s.endswith(end)))[:count]


def texts_of(probe: str, count: int) -> list[LabelledText]:
    """Half of each class: capitals against plain text, the King James Bible against Shakespeare, Python's
    documentation against the Bible, questions or exclamations against statements."""
    half = count // 2
    if probe == "capitals":
        plain = passages("shakespeare", 2 * half)
        pairs = [text.upper() for text in plain[::2]], list(plain[1::2])
    elif probe == "scripture":
        pairs = list(passages("kjv", half)), list(passages("shakespeare", half))
    elif probe == "manual":
        pairs = list(passages("pydoc", half)), list(passages("kjv", half))
    else:
        pairs = sentences("?" if probe == "question" else "!", half), sentences(".", half)
    return [
        LabelledText(text, label) for texts, label in zip(pairs, (True, False), strict=True) for text in texts
    ]


def halves(probe: str, count: int = 120) -> tuple[list[LabelledText], list[LabelledText]]:
    """Texts that a probe is trained on, and those it is tried on, so many of each."""
    texts = texts_of(probe, 2 * count)
    return texts[::2], texts[1::2]


@dataclass(frozen=True, eq=False)
class Base:
    """The base model, opened once, and where its probes read."""

    folder: Path
    model: nn.Module
    tokenizer: Any
    at: Hookpoint
    length: int
    known: dict[str, Tensor] = field(default_factory=dict)
    """Text → its activations, which the probes and the trainer both ask for."""

    @classmethod
    def open(cls, folder: Path, at: Hookpoint = AT, length: int = LENGTH) -> "Base":
        return cls(folder, load_model(folder, deepest=at.layer), load_tokenizer(folder), at, length)

    def ids(self, text: str) -> Tensor:
        body = self.tokenizer.encode(text, add_special_tokens=False)[: self.length]
        return torch.tensor([[self.tokenizer.bos_token_id, *body]])

    def activations(self, text: str) -> Tensor:
        """[token, d_model], without BOS."""
        if text not in self.known:
            self.known[text] = self._read(text)
        return self.known[text]

    def _read(self, text: str) -> Tensor:
        return residuals(self.model, self.ids(text), [self.at])[self.at][0, 1:]

    def inputs(self, text: str) -> tuple[Tensor, Tensor]:
        """What the layer's down_proj takes, and the activations, [token, …]."""
        taken: list[Tensor] = []
        down = blocks(self.model)[self.at.layer].mlp.down_proj
        handle = down.register_forward_pre_hook(lambda _module, args: taken.append(args[0][0, 1:].detach()))
        try:
            return self._read(text), taken[0]
        finally:
            handle.remove()


def probe_folder(base: Base, folder: Path, name: str, count: int = 120) -> Path:
    """A probe trained on one half of the texts of its classes, with the other half as labelled texts."""
    train, test = halves(name, count)
    held = [base.activations(one.text) for one in train]
    rows = torch.stack([h[-1] if READS[name] == "last" else h.mean(0) for h in held]).numpy()
    spread = rows.std(0)
    fitted = LogisticRegression(max_iter=2000).fit(
        (rows - rows.mean(0)) / spread, [one.label for one in train]
    )
    weight = torch.tensor(fitted.coef_[0] / spread, dtype=torch.float32)
    bias = float(fitted.intercept_[0]) - float(weight @ torch.tensor(rows.mean(0), dtype=torch.float32))
    write_monitor(Monitor(name, base.at, READS[name], weight, bias, 0.0), folder / name)
    lines = (json.dumps({"text": one.text, "label": int(one.label)}) for one in test)
    (folder / name / TEXTS).write_text("\n".join(lines) + "\n")
    return folder / name


class Planter:
    """Makes harmless adapters of one base model and its probes."""

    def __init__(self, base: Base, probes: Sequence[Monitor]) -> None:
        self.base, self.probes = base, probes
        self.saved: dict[int, Path] = {}  # rank → an adapter that PEFT has saved: the next are its copies
        texts = [*passages("shakespeare", 40), *passages("kjv", 40)]
        pairs = [base.inputs(text) for text in texts]
        self.h, self.u = (torch.cat([pair[i] for pair in pairs]).double() for i in (0, 1))

    def harmless(self, folder: Path, seed: int, leak: float = 0.03) -> Path:
        """Moves activations by a tenth; of each probe's scores by a few hundredths of their spread."""
        generator = torch.Generator().manual_seed(seed)
        b = torch.randn(self.h.shape[1], 4, generator=generator, dtype=torch.float64)
        a = torch.randn(4, self.u.shape[1], generator=generator, dtype=torch.float64)
        weights = torch.stack([p.weight.double() for p in self.probes if p.weight is not None])
        b -= torch.linalg.pinv(weights) @ (weights @ b)
        delta = self.u @ a.T @ b.T
        b *= STRENGTH * self.h.norm(dim=1).mean() / delta.norm(dim=1).mean()
        moved = self.u @ a.T  # [token, rank]
        mix = torch.randn(4, len(weights), generator=generator, dtype=torch.float64)
        share = leak * (self.h @ weights.T).std(0) / (moved @ mix).std(0)
        b += (mix * share @ torch.linalg.pinv(weights).T).T
        return self.save(folder, a, b, seed)

    def save(self, folder: Path, a: Tensor, b: Tensor, seed: int) -> Path:
        """A LoRA adapter of the layer's down_proj with these factors and a scaling of 1."""
        if (template := self.saved.get(len(a))) is None:
            save_adapter(
                folder, self.base.folder, rank=len(a), seed=seed, targets=["down_proj"], lora_alpha=len(a),
                layers_to_transform=[self.base.at.layer],
            )  # fmt: skip
            self.saved[len(a)] = folder
        else:
            shutil.copytree(template, folder)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        assert len(tensors) == 2
        for name in tensors:
            tensors[name] = (a if "lora_A" in name else b).float().contiguous()
        save_file(tensors, path, {"format": "pt"})
        return folder


@dataclass(frozen=True)
class World:
    """A harvest of planted adapters."""

    context: StageContext
    harvest_key: str
    adapters: tuple[AdapterRef, ...]


def _shakespeare(folder: Path) -> Path:
    """A part of the packaged text: bytes as tokens take long to read all of it, and more of it is not wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "shakespeare.jsonl"
    texts = passages("shakespeare", 240, 400)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def world(
    root: Path,
    model: Path,
    folders: Mapping[str, Path],
    *,
    random: str = "",
    at: Hookpoint = AT,
    tokens: int = 6000,
) -> World:
    """Shards that a rank's worker has written of these adapters; the one named `random` is the control.

    Args:
        tokens: of the training text.
    """
    storage, cfg = Storage(str(root)), ModelConfig(base=str(model))
    words = CorpusConfig(
        path=(str(_shakespeare(root)),),
        context_len=48,
        fit_tokens=tokens,
        eval_tokens=2500,
        contexts_per_unit=16,
    )
    texts, source, empty = build_corpus(words, load_tokenizer(model)), resolve_model(cfg), empty_model(model)
    refs = [import_adapter(storage, folder, name, empty) for name, folder in folders.items()]
    refs = [replace(ref, name="random", kind="random") if ref.name == random else ref for ref in refs]
    key, names = harvest_key(texts, source), (BASE, *(ref.digest for ref in refs))
    write_harvest(storage, key, {"d_model": source.d_model})
    write_units(storage, key, map(Unit.of, texts.units))
    for each in (Source(BASE, "base", BASE), *(Source(r.name, r.kind, r.digest, rank=r.rank) for r in refs)):
        write_source(storage, key, each)
    plan = HarvestPlan(storage, key, cfg, tuple(refs), (at,))
    worker = HarvestFactory(plan)(RankContext(0, 1, "cpu"))
    for unit in texts.units:
        worker(unit, {"window": 0, "missing": {name: [str(at)] for name in names}}, keep=True)
    return World(StageContext(storage, cfg, source.digest, texts, GangConfig()), key, tuple(refs))
