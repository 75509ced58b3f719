"""Other libraries' dictionaries with one training step each, by their own recipes. Both are of the extra
[bench]."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from deltasae_ray.sae.trainer import Trainer


def saelens(
    x: Tensor, d_sae: int, k: int, batch: int, steps: int, architecture: str = "topk"
) -> tuple[Any, Callable[[], None]]:
    """(its SAE, its step) with the settings of its TopK tutorial: lr 3e-4, linear decay over the last
    fifth."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    scaled = x * (x.shape[1] / x.square().sum(1).mean()).sqrt()
    kind, config = get_sae_training_class(architecture)
    sae = kind(config(d_in=x.shape[1], d_sae=d_sae, k=k))
    cfg = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=3e-4,
        lr_end=3e-5,
        lr_decay_steps=steps // 5,
    )

    def batches() -> Iterator[Tensor]:
        while True:
            for part in scaled[torch.randperm(len(scaled))].split(batch):
                if len(part) == batch:
                    yield part

    data = batches()
    trainer = SAETrainer(cfg, sae, data)
    return sae, lambda: trainer.step(next(data)) and None


def sparsify_coder(like: Trainer) -> tuple[Any, Callable[[], None]]:
    """(its coder, its step) on the batches that `like` would take next: scaled and centred, in the same
    order."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(like.x.shape[1], SparseCoderConfig(num_latents=like.recipe.d_sae, k=like.recipe.k))
    # Its trainer's rule: 2e-4 at 2^14 latents, growing as the root of fewer.
    optimizer = torch.optim.Adam(coder.parameters(), lr=2e-4 / (like.recipe.d_sae / 2**14) ** 0.5, fused=True)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(like.next_batch()).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return coder, step
