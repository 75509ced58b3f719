"""The arena's base model: a small causal language model and its tokenizer, trained here on the texts that
come with the package.

    python -m deltasae_ray.arena.base tests/arena/base
"""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from deltasae_ray.cli import say
from deltasae_ray.corpus.contexts import uniform
from deltasae_ray.corpus.documents import documents_of
from deltasae_ray.corpus.files import files_of

SPECIAL = ("<pad>", "<s>", "</s>")
"""Padding, BOS and EOS: ids 0, 1, 2."""
TEXTS = ("builtin:kjv", "builtin:shakespeare")
"""Texts that are the same on every machine; Python's own documentation is not."""
RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is made."""

    vocab: int = 4096
    width: int = 160
    mlp_width: int = 416
    layers: int = 4
    heads: int = 4
    context_len: int = 96
    """Tokens a row, BOS included."""
    batch: int = 16
    """Rows a step."""
    steps: int = 700
    lr: float = 0.01
    """Peak rate of Muon on the matrices of the blocks."""
    lr_embedding: float = 0.004
    """Peak rate of AdamW on embedding and norms."""
    held_out: float = 0.2
    """Share of the documents that the base never reads; adapters are trained and tested on them."""
    seed: int = 0


def plain_documents(*, held_out: bool, share: float = BaseRecipe.held_out) -> list[str]:
    """The documents that the base model is trained on, or those that it never reads."""
    documents = [d for path in TEXTS for file in files_of(path) for d in documents_of(file)]
    return [d.text for d in documents if (uniform("arena", d.id) < share) == held_out]


def save_tokenizer(texts: Sequence[str], folder: Path, vocab: int) -> Any:
    """A byte-level BPE tokenizer learnt from `texts`, saved as transformers reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    saved.save_pretrained(folder)
    return saved


def new_model(recipe: BaseRecipe) -> Any:
    """The Llama of the recipe with its first weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab,
            hidden_size=recipe.width,
            intermediate_size=recipe.mlp_width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def rows_of_tokens(texts: Sequence[str], tokenizer: Any, length: int) -> Int[Tensor, "row position"]:
    """BOS and `length - 1` tokens of one document a row; what is left of a document is left out."""
    rows: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        rows += [[1, *ids[i : i + length - 1]] for i in range(0, len(ids) - length + 2, length - 1)]
    return torch.tensor(rows)


def train(folder: Path, recipe: BaseRecipe) -> dict[str, Any]:
    """Trains tokenizer and model and writes both, weights in fp16, with the recipe beside them.

    Returns:
        What recipe.json holds: the recipe, the loss on documents that were not read, and the digest of the
        weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    read, unread = (plain_documents(held_out=h, share=recipe.held_out) for h in (False, True))
    tokenizer = save_tokenizer(read, folder, recipe.vocab)
    rows, other = (rows_of_tokens(t, tokenizer, recipe.context_len) for t in (read, unread))
    model = new_model(recipe).train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=recipe.lr_embedding, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    for step in range(recipe.steps):
        rate = _schedule(step, recipe.steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
        loss = model(input_ids=_batch(rows, step, recipe), use_cache=False).logits
        loss = _cross_entropy(loss, _batch(rows, step, recipe))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 25 == 0:
            say(f"step {step}: {loss.item():.3f} nats a token")
    return _written(folder, model, recipe, _held_out(model, other))


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 30 steps, flat to the half, then linear to a fiftieth."""
    return min(1.0, (step + 1) / 30, max(0.02, 2 * (1 - step / steps)))


def _batch(rows: Tensor, step: int, recipe: BaseRecipe) -> Tensor:
    epoch, per_epoch = divmod(step, len(rows) // recipe.batch)
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(rows))
    return rows[torch.from_numpy(order[per_epoch * recipe.batch : (per_epoch + 1) * recipe.batch])]


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def _held_out(model: nn.Module, rows: Tensor) -> float:
    model.eval()
    every = rows[:: max(1, len(rows) // 128)]
    return float(_cross_entropy(model(input_ids=every, use_cache=False).logits, every))


def _written(folder: Path, model: Any, recipe: BaseRecipe, held_out: float) -> dict[str, Any]:
    model.to(torch.float16).save_pretrained(folder)
    weights = folder / "model.safetensors"
    facts = {
        "recipe": asdict(recipe),
        "texts": list(TEXTS),
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_nats_per_token": round(held_out, 4),
        "nats_at_chance": round(math.log(recipe.vocab), 4),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / RECIPE_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


if __name__ == "__main__":
    say(json.dumps(train(Path(sys.argv[1]), BaseRecipe()), indent=1))
