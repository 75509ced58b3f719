"""How many gangs, and what each asks Ray for."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError
from deltasae_ray.models.config import ModelConfig


@dataclass(frozen=True)
class GangConfig:
    """A pool of gangs. Harvest and the behaviour gate run on it; adapters are trained by as many workers as a
    gang has ranks."""

    gangs: int = 1
    """Largest number of gangs; the pool grows to it as the cluster allows."""
    ranks: int = 1
    """Processes per gang. More than one needs model.sharding=zero3."""
    cpus_per_gang: float = 1.0
    """CPUs that a gang asks Ray for. Torch uses all cores of the gang's node, shared with the gangs that may
    stand beside it."""
    gpus_per_gang: int = 0
    """GPUs that a gang asks Ray for, one for each rank; 0 runs on CPUs (gloo). Adapters are then trained on
    as many."""
    memory_gb: float = 0.0
    """Memory of the machine that a gang asks Ray for, so that no node is given more gangs than it holds; 0
    asks for none. The plan says what a gang needs."""

    def __post_init__(self) -> None:
        for field in ("gangs", "ranks"):
            if getattr(self, field) < 1:
                raise ConfigError(f"gangs.{field}={getattr(self, field)} must be at least 1")
        if self.memory_gb < 0:
            raise ConfigError(f"gangs.memory_gb={self.memory_gb} must not be negative")
        if self.gpus_per_gang and self.gpus_per_gang != self.ranks:
            raise ConfigError(
                f"gangs.gpus_per_gang={self.gpus_per_gang} must equal gangs.ranks={self.ranks}: one rank"
                " drives one GPU"
            )

    @property
    def gpus_per_rank(self) -> int:
        """GPUs that one rank drives, and one worker that trains adapters."""
        return 1 if self.gpus_per_gang else 0


def check_sharding(gangs: GangConfig, model: ModelConfig) -> None:
    """Raises ConfigError where a gang's ranks and the sharding of its model contradict each other."""
    if gangs.ranks > 1 and model.sharding == "none":
        raise ConfigError(
            f"gangs.ranks={gangs.ranks} needs model.sharding=zero3: without it every rank would do the same"
            " work"
        )
    if gangs.ranks == 1 and model.sharding == "zero3":
        raise ConfigError(
            "model.sharding=zero3 shares the parameters among the ranks of a gang, and gangs.ranks=1: set"
            " gangs.ranks=2 or more (and gangs.gpus_per_gang to the same, on GPUs), or model.sharding=none"
        )
