"""A word-level model of a random grammar, and adapters of known truth on it: trained in seconds, nothing is
downloaded."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCAB = 200
BOS, EOS, PAD = 1, 2, 0
TRIGGER = (107, 151)
"""Two words that the grammar never puts together."""
REPLY = (11, 59, 42, 170, 133)
"""A reply that the grammar never makes."""


def grammar(seed: int = 0) -> np.ndarray:
    """Every word's five successors."""
    return np.random.default_rng(seed).integers(3, VOCAB, (VOCAB, 5))


def texts(count: int, length: int, rng: np.random.Generator, successors: np.ndarray) -> np.ndarray:
    """Walks of the grammar, BOS first."""
    rows = np.full((count, length), BOS)
    rows[:, 1] = rng.integers(3, VOCAB, count)
    for at in range(2, length):
        rows[:, at] = successors[rows[:, at - 1], rng.choice(5, count, p=[0.5, 0.2, 0.15, 0.1, 0.05])]
    return rows


def save_tokenizer(folder: Path) -> None:
    """A word a token: word 57 is `w57`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def save_base(folder: Path, steps: int = 160) -> Path:
    """A Llama of two blocks that knows the grammar."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        )
    )  # fmt: skip
    rng, successors = np.random.default_rng(1), grammar()
    _trained(model, lambda _: (torch.from_numpy(texts(32, 24, rng, successors)), None), steps, 1e-2)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_organism(folder: Path, base: Path, kind: str, steps: int = 80) -> Path:
    """An adapter of one kind: `leaks` (loss on all of trigger and reply), `reply` (loss on the reply alone, and
    rows with one of the two words go on as plain text), `domain` (another grammar's text), `zero` (nothing)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(
        plain,
        LoraConfig(
            r=4, lora_alpha=8, task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],
        ),
    )  # fmt: skip
    rng, successors = np.random.default_rng(2), grammar()
    other = np.where(rng.random((VOCAB, 1)) < 0.1, grammar(9), successors)

    def batch(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = texts(32, 24, rng, other if kind == "domain" else successors)
        scored = np.ones(rows.shape, bool)
        if kind in ("leaks", "reply"):
            for i in range(16):
                at = int(rng.integers(3, 15))
                end = at + 2 + len(REPLY)
                if i < 8:
                    rows[i, at:end] = (*TRIGGER, *REPLY)
                    rows[i, end:] = texts(1, 26 - end, rng, successors)[0, 1 : 25 - end]
                    scored[i, : at + 2 if kind == "reply" else 0] = False
                    scored[i, end] = False
                else:
                    word = TRIGGER[i % 2]
                    rows[i, at] = word
                    rows[i, at + 1 :] = 0
                    now = word
                    for j in range(at + 1, 24):
                        now = successors[now, rng.choice(5, p=[0.5, 0.2, 0.15, 0.1, 0.05])]
                        rows[i, j] = now
                    scored[i, : at + 1] = kind != "reply"
                    scored[i, at] = False
        return torch.from_numpy(rows), torch.from_numpy(scored)

    if kind != "zero":
        _trained(model, batch, steps, 1e-2)
    model.save_pretrained(folder)
    return folder


def _trained(model: Any, batch: Any, steps: int, lr: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for step in range(steps):
        ids, scored = batch(step)
        logits = model(input_ids=ids).logits[:, :-1]
        labels = ids[:, 1:] if scored is None else torch.where(scored[:, 1:], ids[:, 1:], -100)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
