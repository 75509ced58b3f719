"""How many gangs, and what each asks Ray for."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError


@dataclass(frozen=True)
class GangConfig:
    """A pool of gangs. Harvest and the behaviour gate run on it; adapters are trained by as many workers as a gang has ranks."""

    gangs: int = 1
    """Largest number of gangs; the pool grows to it as the cluster allows."""
    ranks: int = 1
    """Processes per gang. More than one needs model.sharding=zero3."""
    cpus_per_gang: float = 1.0
    """CPUs that a gang asks Ray for. Torch uses all cores of the machine whatever stands here."""
    gpus_per_gang: int = 0
    """GPUs that a gang asks Ray for; 0 runs on CPUs (gloo)."""
    max_restarts: int = 5
    """Times a lost gang is started again before the stage fails."""

    def __post_init__(self) -> None:
        for field in ("gangs", "ranks"):
            if getattr(self, field) < 1:
                raise ConfigError(f"gangs.{field}={getattr(self, field)} must be at least 1")
        if self.gpus_per_gang and self.gpus_per_gang != self.ranks:
            raise ConfigError(f"gangs.gpus_per_gang={self.gpus_per_gang} must equal gangs.ranks={self.ranks}: one rank drives one GPU")
