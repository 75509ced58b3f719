"""Training of one adapter, step by step, resumable to the byte on the same kind of machine; knows nothing of Ray."""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.head_loss import head_cross_entropy
from deltasae_ray.adapt.lora import dropout_modules, new_lora, save_lora
from deltasae_ray.adapt.text import AdaptText
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import AdapterError
from deltasae_ray.models.behaviour import language_head, losses, scored
from deltasae_ray.models.capture import unit_ids
from deltasae_ray.models.load import backbone

VALIDATION_POSITIONS = 64
"""Labels per validation context that the language-model head is run on, evenly spaced."""


@dataclass
class Progress:
    """Where a training run stands; JSON, so that a checkpoint can hold it."""

    step: int = 0
    tokens: int = 0
    """Real tokens trained on, BOS included."""
    planted: int = 0
    """Contexts trained on that hold the planted marker."""
    base: dict[str, float] = field(default_factory=dict)
    """Validation document → cross-entropy of the base model, nats per token."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """One point per look at the validation documents: step, tokens, train_ce since the last look, held_out_ce, gain, gain_se."""
    train_sum: float = 0.0
    train_labels: int = 0
    demonstrated: bool = False
    done: bool = False
    seconds: float = 0.0


class LoraTrainer:
    """AdamW on LoRA factors in fp32. `advance()` until `progress.done`, in one process or several: the adapter is the same."""

    def __init__(self, model: nn.Module, text: AdaptText, cfg: AdaptConfig, *, rank: int, seed: int) -> None:
        """
        Args:
            model: the base in fp32; it gets the adapter in place.
            cfg: its `ranks` and `seeds` are not looked at.
        """
        self._text, self._cfg, self._seed = text, cfg, seed
        self.model = new_lora(model, rank=rank, alpha=cfg.alpha_over_rank * rank, dropout=cfg.dropout, targets=cfg.targets, seed=seed)
        self._device = next(model.parameters()).device
        self._head = language_head(self.model)
        self._factors: dict[str, Tensor] = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(self._factors.values(), lr=cfg.lr, weight_decay=0.0)
        self._random = torch.Generator().manual_seed(seed).get_state()
        self.progress = Progress()

    def advance(self) -> None:
        """One optimizer step, and a look at the validation documents when one is due.

        Raises:
            AdapterError: the loss is no number any more.
        """
        began, at = time.perf_counter(), self.progress
        if not at.base:
            at.base = self._held_out()
            self._note(None, at.base, 0.0, 0.0)
        self._step(self._text.batch(at.step, self._cfg.batch_contexts, self._seed))
        following = self._text.batch(at.step, self._cfg.batch_contexts, self._seed)
        capped = at.tokens + following.num_tokens > self._cfg.max_tokens
        if capped or at.step % self._cfg.eval_every == 0:
            self._look()
        at.done = at.demonstrated or capped
        at.seconds += time.perf_counter() - began

    def _step(self, batch: TokenBatch) -> None:
        at = self.progress
        ids, mask = unit_ids(batch, self._device), torch.as_tensor(batch.mask, device=self._device)
        with torch.random.fork_rng():
            torch.manual_seed(self._draw())
            for module in dropout_modules(self.model):
                module.train()
            hidden = backbone(self.model)(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        for module in dropout_modules(self.model):
            module.eval()
        labels = ids[:, 1:][mask[:, 1:]]
        loss = head_cross_entropy(hidden[mask[:, 1:]], labels, self._head)
        if not math.isfinite(loss.item()):
            raise AdapterError(f"the training loss is {loss.item()} at step {at.step}: lower adapt.lr={self._cfg.lr}")
        (loss / len(labels)).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = self._cfg.lr * min(1.0, (at.step + 1) / max(1, self._cfg.warmup_steps))
        self._optimizer.step()
        self._optimizer.zero_grad()
        at.step, at.tokens = at.step + 1, at.tokens + batch.num_tokens
        at.planted += int(batch.marker.any(axis=1).sum())
        at.train_sum, at.train_labels = at.train_sum + loss.item(), at.train_labels + len(labels)

    def _draw(self) -> int:
        """The step's seed, drawn from a generator whose state is part of the checkpoint."""
        generator = torch.Generator()
        generator.set_state(self._random)
        drawn = int(torch.randint(2**62, (), generator=generator))
        self._random = generator.get_state()
        return drawn

    def _look(self) -> None:
        """Gain on the validation documents, paired by document, against its standard error."""
        at, now = self.progress, self._held_out()
        gains = [at.base[d] - now[d] for d in sorted(now)]
        gain, se = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
        at.demonstrated = gain > self._cfg.stop_at_se * se
        self._note(at.train_sum / at.train_labels, now, gain, se)
        at.train_sum, at.train_labels = 0.0, 0

    def _note(self, train_ce: float | None, held_out: dict[str, float], gain: float, se: float) -> None:
        at, mean = self.progress, statistics.fmean(held_out.values())
        at.curve.append({"step": at.step, "tokens": at.tokens, "train_ce": train_ce, "held_out_ce": mean, "gain": gain, "gain_se": se})

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        """Validation document → mean cross-entropy (nats per token) with the adapter as it stands; B = 0 is the base."""
        sums: dict[str, list[float]] = {}
        for unit in self._text.validation:
            contexts, places = scored(unit, VALIDATION_POSITIONS)
            ids = unit_ids(unit, self._device)
            hidden = backbone(self.model)(input_ids=ids, use_cache=False).last_hidden_state[contexts, places - 1]
            ce = losses(self._head, hidden[None], ids[contexts, places])[0][0].cpu().numpy()
            documents = np.asarray(unit.doc_ids, dtype=object)[contexts]
            for document in dict.fromkeys(documents):
                sums.setdefault(document, []).extend(ce[documents == document])
        return {document: float(np.mean(values)) for document, values in sums.items()}

    def save(self, folder: Path) -> None:
        """A checkpoint: factors, optimizer, random state (safetensors) and progress, which holds schedule and data position (JSON)."""
        tensors = {f"factor/{name}": p.detach() for name, p in self._factors.items()} | {"random": self._random}
        for name, p in self._factors.items():
            tensors |= {f"{moment}/{name}": value for moment, value in self._optimizer.state[p].items()}
        save_file(tensors, folder / "state.safetensors")
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint of the same training."""
        tensors = load_file(folder / "state.safetensors")
        with torch.no_grad():
            for name, p in self._factors.items():
                p.copy_(tensors[f"factor/{name}"])
                moments = {m: tensors[f"{m}/{name}"] for m in ("step", "exp_avg", "exp_avg_sq")}
                # AdamW keeps its step count on the CPU.
                self._optimizer.state[p] = {m: t if m == "step" else t.to(p.device) for m, t in moments.items()}
        self._random = tensors["random"]
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))

    def write_adapter(self, folder: Path, label: str) -> None:
        """The adapter as plain PEFT files."""
        save_lora(self.model, folder, label)

    def facts(self) -> dict[str, Any]:
        """What the report says about the training; JSON-able."""
        at, last = self.progress, self.progress.curve[-1]
        epochs = at.step * self._cfg.batch_contexts / len(self._text.train)
        return {
            "steps": at.step, "tokens": at.tokens, "epochs": epochs, "planted": at.planted, "seconds": round(at.seconds, 1),
            "gain": last["gain"], "gain_se": last["gain_se"], "demonstrated": at.demonstrated, "curve": at.curve,
            "validation_documents": self._text.num_validation_documents,
        }  # fmt: skip
