"""LoRA training: used only where no adapters are given."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError

MAX_LR = 3e-4


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
    """Peak learning rate of AdamW, reached after the warm-up; at most 3e-4 (more damages small models before it teaches)."""
    warmup_steps: int = 4
    """Steps of linear warm-up; the rate is constant afterwards."""
    batch_contexts: int = 4
    """Contexts per optimizer step."""
    max_tokens: int = 12_000
    """Cap on training tokens per adapter. A cap in tokens, not seconds, so that two runs end at the same step."""
    eval_every: int = 4
    """Steps between looks at the held-out gain."""
    stop_at_se: float = 5.0
    """Training ends when the held-out gain exceeds this many standard errors."""
    checkpoint_every: int = 4
    """Steps between checkpoints (adapter, optimizer, schedule, data position, random state)."""
    max_failures: int = 3
    """Times a killed training worker is started again from its last checkpoint."""
    cpus_per_worker: float = 0.5
    """CPUs that a training worker asks Ray for. Torch uses the node's cores divided by the workers on it."""
    gpus_per_worker: float = 0.0
    """GPUs that a training worker asks Ray for; 1 where several share a model (model.sharding=zero3)."""

    def __post_init__(self) -> None:
        if not 0 < self.lr <= MAX_LR:
            raise ConfigError(f"adapt.lr={self.lr} must be in (0, {MAX_LR}]")
        if any(r < 1 for r in self.ranks) or len(set(self.ranks)) != len(self.ranks):
            raise ConfigError(f"adapt.ranks={list(self.ranks)} must be different positive numbers")
        if not self.targets:
            raise ConfigError("adapt.targets is empty: name the linear modules that get an adapter")
        for field in ("seeds", "batch_contexts", "eval_every", "checkpoint_every", "max_tokens"):
            if getattr(self, field) < 1:
                raise ConfigError(f"adapt.{field}={getattr(self, field)} must be at least 1")
