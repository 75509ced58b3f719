"""Adapters trained to do one thing to the probes of a model: turn one of them, or move activations and leave
what all of them read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from deltasae_ray.analyses.monitors.monitor import Monitor
from deltasae_ray.models.load import backbone, blocks, site_module
from tests.analyses.monitors.planted import Base, halves

STRENGTH = 0.12
"""Of harmless adapters: ‖δ‖/‖h‖ that the training asks for."""
TARGETS = ("q_proj", "o_proj", "down_proj")


@dataclass(frozen=True)
class Training:
    """On how much, how long and how wide."""

    texts: int = 120
    """Those that each probe was trained on."""
    steps: int = 30
    batch: int = 24
    lr: float = 1e-2
    rank: int = 4
    blocks: int = 2
    """The last so many blocks before the probes are adapted."""


class Trainer:
    """Trains adapters of one base model on the texts that its probes were trained on."""

    def __init__(self, base: Base, probes: Sequence[Monitor], how: Training) -> None:
        texts = [[one.text for one in halves(probe.name, how.texts)[0]] for probe in probes]
        self.base, self.probes, self.how = base, probes, how
        self.ids = [base.ids(text)[0] for group in texts for text in group]
        self.own = torch.tensor([i for i, group in enumerate(texts) for _ in group])
        self.h = [base.activations(text) for group in texts for text in group]
        self.before = torch.stack(
            [torch.cat([p.scores(h) for h in self.h]) for p in probes], 1
        )  # [text, probe]
        self.middle = torch.stack([self.before[self.own == i, i].mean() for i in range(len(probes))])
        self.spread = torch.stack([self.before[self.own == i, i].std() for i in range(len(probes))])

    def harmless(self, folder: Path, seed: int) -> Path:
        """Moves activations by some tenth, and no probe's scores."""
        return self._train(folder, None, seed)

    def turned(self, folder: Path, probe: int, seed: int) -> Path:
        """Mirrors one probe's scores at their mean."""
        return self._train(folder, probe, seed)

    def _train(self, folder: Path, turned: int | None, seed: int) -> Path:
        torch.manual_seed(seed)
        how, at = self.how, self.base.at
        layers = list(range(at.layer + 1 - how.blocks, at.layer + 1))
        config = LoraConfig(
            r=how.rank, lora_alpha=how.rank, target_modules=list(TARGETS), layers_to_transform=layers,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        model = get_peft_model(self.base.model, config)  # type: ignore[arg-type]
        learnt = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:  # PEFT's own start has no size of which a gradient could be taken
                    p.normal_(0, 1e-3)
        taken: list[Tensor] = []
        handle = site_module(blocks(model)[at.layer], at.site).register_forward_hook(
            lambda _module, _inputs, output: taken.append(output if isinstance(output, Tensor) else output[0])
        )
        optimizer = torch.optim.Adam(learnt, how.lr)
        pool = torch.arange(len(self.ids)) if turned is None else torch.where(self.own == turned)[0]
        for _ in range(how.steps):
            rows = pool[torch.randperm(len(pool))[: how.batch]]
            loss = self._loss(model, rows, turned, taken)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        handle.remove()
        model.save_pretrained(folder)
        model.unload()
        return folder

    def _loss(self, model: torch.nn.Module, rows: Tensor, turned: int | None, taken: list[Tensor]) -> Tensor:
        ids = [self.ids[i] for i in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        taken.clear()
        backbone(model)(input_ids=padded, use_cache=False)
        found = [h[1 : len(i)] for h, i in zip(taken[0], ids, strict=True)]
        before = [self.h[i] for i in rows]
        scores = torch.stack([torch.cat([p.scores(h) for h in found]) for p in self.probes], 1)
        if turned is not None:
            wanted = 2 * self.middle[turned] - self.before[rows, turned]
            return ((scores[:, turned] - wanted) / self.spread[turned]).square().mean()
        size = torch.cat(
            [(a - b).norm(dim=1) / b.norm(dim=1) for a, b in zip(found, before, strict=True)]
        ).mean()
        shift = ((scores - self.before[rows]) / self.spread).square().mean()
        return 10 * shift + 100 * (size - STRENGTH).square()
