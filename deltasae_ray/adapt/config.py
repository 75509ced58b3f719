"""LoRA training: used only where no adapters are given."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError

MAX_LR = 3e-4
CPUS_PER_WORKER = 0.5
"""CPUs that a training worker asks Ray for. Torch uses the node's cores divided by the workers on it."""


@dataclass(frozen=True)
class AdaptConfig:
    """LoRA adapters trained with PEFT, one per rank and seed."""

    ranks: tuple[int, ...] = (4, 16)
    """LoRA ranks to train when `adapters` is empty."""
    seeds: int = 1
    """Adapters per rank. No claim about rank is made with fewer than 2."""
    alpha_over_rank: float = 2.0
    """LoRA alpha divided by the rank."""
    dropout: float = 0.0
    """LoRA dropout while training."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear modules that get an adapter."""
    lr: float = 3e-4
    """Peak learning rate of AdamW, reached after a warm-up of 4 steps; at most 3e-4 (more damages small
    models before it teaches)."""
    batch_contexts: int = 4
    """Contexts per optimizer step."""
    max_tokens: int = 12_000
    """Cap on training tokens per adapter. A cap in tokens, not seconds, so that two runs end at the same
    step."""
    stop_at_se: float = 5.0
    """Training ends when the held-out gain exceeds this many standard errors."""

    def __post_init__(self) -> None:
        if not 0 < self.lr <= MAX_LR:
            raise ConfigError(f"adapt.lr={self.lr} must be in (0, {MAX_LR}]")
        if any(r < 1 for r in self.ranks) or len(set(self.ranks)) != len(self.ranks):
            raise ConfigError(f"adapt.ranks={list(self.ranks)} must be different positive numbers")
        if not self.targets:
            raise ConfigError("adapt.targets is empty: name the linear modules that get an adapter")
        for field in ("seeds", "batch_contexts", "max_tokens"):
            if getattr(self, field) < 1:
                raise ConfigError(f"adapt.{field}={getattr(self, field)} must be at least 1")
