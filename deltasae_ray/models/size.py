"""How large a model is, read from its modules without their weights: what its memory is reckoned from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from deltasae_ray.models.casts import is_linear
from deltasae_ray.models.load import base_of, blocks


@dataclass(frozen=True)
class ModelSize:
    """Numbers of one architecture; entries, not bytes."""

    parameters: int
    """Of the whole model, shared ones once."""
    largest: int
    """Of its largest parameter, as a rule the embedding."""
    largest_in_block: int
    """Of the largest parameter of any block."""
    layers: int
    d_model: int
    heads: int
    vocabulary: int
    block_outputs: int
    """Numbers per token that the linear layers of a block give, in the block that gives most."""
    inputs: Mapping[str, int]
    """Name of a linear module, such as q_proj → numbers per token that it reads, in the block where they are
    most."""
    per_rank: Mapping[str, int]
    """Name of a linear module, such as q_proj → parameters that LoRA adds for each rank, over all blocks."""

    def lora(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of a LoRA adapter."""
        return rank * sum(self.per_rank.get(name, 0) for name in targets)


def model_size(model: nn.Module) -> ModelSize:
    """Measures a model, which may be without weights (`load.empty_model`)."""
    inner, stack = base_of(model), blocks(model)
    config: Any = inner.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = [p.numel() for p in inner.parameters()]
    per_rank: Counter[str] = Counter()
    read: Counter[str] = Counter()
    outputs = []
    for block in stack:
        linear = [
            (name.rpartition(".")[2], *_features(module))
            for name, module in block.named_modules()
            if is_linear(module)
        ]
        outputs.append(sum(given for _, _, given in linear))
        here: Counter[str] = Counter()
        for name, taken, given in linear:
            here[name] += taken
            per_rank[name] += taken + given
        read |= here
    return ModelSize(
        parameters=sum(sizes),
        largest=max(sizes),
        largest_in_block=max(p.numel() for block in stack for p in block.parameters()),
        layers=len(stack),
        d_model=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        block_outputs=max(outputs),
        inputs=dict(read),
        per_rank=dict(per_rank),
    )


def _features(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear module; GPT-2's Conv1D keeps its weight as [in, out]."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
