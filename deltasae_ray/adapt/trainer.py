"""Training of one adapter, step by step, resumable to the byte on the same kind of machine; knows nothing of
Ray.

Peers that share a base model by ZeRO-3 take the same steps: each runs its rows of every batch, and gradients
and losses are added up.
"""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltasae_ray import heartbeat
from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.head_loss import head_cross_entropy
from deltasae_ray.adapt.lora import dropout_modules, new_lora, save_lora
from deltasae_ray.adapt.text import AdaptText
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import AdapterError
from deltasae_ray.models.behaviour import language_head, losses, scored
from deltasae_ray.models.capture import unit_ids, unit_mask
from deltasae_ray.models.load import backbone
from deltasae_ray.models.zero3 import whole
from deltasae_ray.sae.peers import Peers

WARMUP_STEPS = 4
"""Steps of linear warm-up; the rate is constant afterwards. Enters every training key."""
EVAL_EVERY = 4
"""Steps between looks at the held-out gain. Enters every training key."""
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
    """One point per look at the validation documents: step, tokens, train_ce since the last look,
    held_out_ce, gain, gain_se."""
    train_sum: float = 0.0
    train_labels: int = 0
    demonstrated: bool = False
    done: bool = False
    seconds: float = 0.0


class LoraTrainer:
    """AdamW on LoRA factors in fp32. `advance()` until `progress.done`, in one process or several: the
    adapter is the same.

    The factors are small and stand whole in every process, so that checkpoint and adapter are those of any
    one of them.
    """

    def __init__(
        self,
        model: nn.Module,
        text: AdaptText,
        cfg: AdaptConfig,
        *,
        rank: int,
        seed: int,
        peers: Peers | None = None,
    ) -> None:
        """
        Args:
            model: the base in fp32, whole or sharded over `peers`; it gets the adapter in place.
            cfg: its `ranks` and `seeds` are not looked at.
            peers: the other processes of this training. Dropout draws differ between them; without dropout
                the adapter is that of one process up to rounding.
        """
        self._text, self._cfg, self._peers = text, cfg, peers or Peers()
        self.rank, self.alpha, self.seed = rank, cfg.alpha_over_rank * rank, seed
        self.model = new_lora(
            model, rank=rank, alpha=self.alpha, dropout=cfg.dropout, targets=cfg.targets, seed=seed
        )
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
        self._step(self._text.batch(at.step, self._cfg.batch_contexts, self.seed))
        following = self._text.batch(at.step, self._cfg.batch_contexts, self.seed)
        capped = at.tokens + following.num_tokens > self._cfg.max_tokens
        if capped or at.step % EVAL_EVERY == 0:
            self._look()
        at.done = at.demonstrated or capped
        at.seconds += time.perf_counter() - began

    def _step(self, batch: TokenBatch) -> None:
        at, ids, mask = self.progress, *self._share(batch)
        with torch.random.fork_rng():
            torch.manual_seed(self._draw() + self._peers.rank)
            for module in dropout_modules(self.model):
                module.train()
            hidden = backbone(self.model)(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        for module in dropout_modules(self.model):
            module.eval()
        labels, count = ids[:, 1:][mask[:, 1:]], int(batch.mask[:, 1:].sum())
        with whole(self._head.module):
            # a share without labels goes back through the model too: sharded parameters are gathered by all
            # processes at once
            loss = (
                head_cross_entropy(hidden[mask[:, 1:]], labels, self._head)
                if len(labels)
                else 0.0 * hidden.double().sum()
            )
        total = self._summed(loss.detach().clone()).item()
        if not math.isfinite(total):
            raise AdapterError(
                f"the training loss is {total} at step {at.step}: lower adapt.lr={self._cfg.lr}"
            )
        (loss / count).backward()
        self._sum_gradients()
        for group in self._optimizer.param_groups:
            group["lr"] = self._cfg.lr * min(1.0, (at.step + 1) / WARMUP_STEPS)
        self._optimizer.step()
        self._optimizer.zero_grad()
        at.step, at.tokens = at.step + 1, at.tokens + batch.num_tokens
        at.planted += int(batch.marker.any(axis=1).sum())
        at.train_sum, at.train_labels = at.train_sum + total, at.train_labels + count

    def _share(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Ids and mask of this process' contexts; where there are too few, of a context whose tokens do not
        count."""
        mine = slice(self._peers.rank, None, self._peers.world)
        ids, mask = unit_ids(batch, self._device), unit_mask(batch, self._device)
        return (ids[mine], mask[mine]) if len(ids[mine]) else (ids[:1], torch.zeros_like(mask[:1]))

    def _sum_gradients(self) -> None:
        factors = self._factors.values()
        whole_batch = self._summed(
            torch.cat([(torch.zeros_like(f) if f.grad is None else f.grad).flatten() for f in factors])
        )
        for factor, gradient in zip(factors, whole_batch.split([f.numel() for f in factors]), strict=True):
            factor.grad = gradient.view_as(factor)

    def _summed(self, tensor: Tensor) -> Tensor:
        self._peers.sum(tensor)
        return tensor

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
        at.curve.append(
            {
                "step": at.step,
                "tokens": at.tokens,
                "train_ce": train_ce,
                "held_out_ce": mean,
                "gain": gain,
                "gain_se": se,
            }
        )

    def _held_out(self) -> dict[str, float]:
        """Validation document → mean cross-entropy (nats per token) with the adapter as it stands; B = 0 is
        the base."""
        with heartbeat.unit("look at the validation documents"):
            return self._losses()

    @torch.no_grad()
    def _losses(self) -> dict[str, float]:
        units, peers = self._text.validation, self._peers
        places = {d: i for i, d in enumerate(sorted({d for unit in units for d in unit.doc_ids}))}
        sums = torch.zeros(
            len(places), 2, dtype=torch.float64, device=self._device
        )  # of losses, and how many
        for start in range(0, len(units), peers.world):
            heartbeat.beat()
            # every process runs a unit in every round; what is beyond the last one does not count
            unit, counts = units[min(start + peers.rank, len(units) - 1)], start + peers.rank < len(units)
            contexts, labels = scored(unit, VALIDATION_POSITIONS)
            ids = unit_ids(unit, self._device)
            hidden = backbone(self.model)(input_ids=ids, use_cache=False).last_hidden_state[
                contexts, labels - 1
            ]
            with whole(self._head.module):
                ce = losses(self._head, hidden[None], ids[contexts, labels])[0][0]
            if counts:
                rows = torch.tensor([places[unit.doc_ids[c]] for c in contexts], device=self._device)
                sums.index_add_(0, rows, torch.stack([ce, torch.ones_like(ce)], dim=1))
        totals = self._summed(sums).tolist()
        return {document: totals[i][0] / totals[i][1] for document, i in places.items() if totals[i][1]}

    def save(self, folder: Path) -> None:
        """A checkpoint: factors, optimizer, random state (safetensors) and progress, which holds schedule and
        data position (JSON)."""
        tensors = {f"factor/{name}": p.detach() for name, p in self._factors.items()} | {
            "random": self._random
        }
        for name, p in self._factors.items():
            tensors |= {f"{moment}/{name}": value for moment, value in self._optimizer.state[p].items()}
        save_file(tensors, folder / "state.safetensors")
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

    def load(self, folder: Path) -> None:
        """Continues from a checkpoint of the same training.

        Raises:
            AdapterError: the checkpoint is damaged, or of another training.
        """
        try:
            self._load(folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as e:
            raise AdapterError(
                f"the checkpoint {folder} is damaged ({e}): delete the run's folder, and this training begins"
                " again"
            ) from e

    def _load(self, folder: Path) -> None:
        tensors = load_file(folder / "state.safetensors")
        with torch.no_grad():
            for name, p in self._factors.items():
                p.copy_(tensors[f"factor/{name}"])
                moments = {m: tensors[f"{m}/{name}"] for m in ("step", "exp_avg", "exp_avg_sq")}
                # AdamW keeps its step count on the CPU.
                self._optimizer.state[p] = {
                    m: t if m == "step" else t.to(p.device) for m, t in moments.items()
                }
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
            "steps": at.step, "tokens": at.tokens, "epochs": epochs, "planted": at.planted,
            "seconds": round(at.seconds, 1),
            "gain": last["gain"], "gain_se": last["gain_se"], "demonstrated": at.demonstrated,
            "curve": at.curve,
            "validation_documents": self._text.num_validation_documents,
        }  # fmt: skip
