"""Which adapters of the arena are made, and which methods are scored on them."""

from dataclasses import dataclass, field
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded
from deltasae_ray.study.storage_config import StorageConfig

TINY = "tests/arena/base"
"""The small language model that comes with the project."""


@dataclass(frozen=True)
class ArenaConfig:
    """An arena: adapters of known truth, methods, and the folder that all of it is kept in."""

    base: str = TINY
    """Folder of the base model that the adapters are trained on."""
    recipes: tuple[str, ...] = ()
    """Names of the recipes; none: all of the table."""
    methods: tuple[str, ...] = ()
    """Names of the methods; none: all."""
    half: Literal["both", "tuning"] = "both"
    """tuning: only the adapters that methods may be tuned on."""
    only_train: bool = False
    """Make the adapters, say whether each learnt its behaviour, and run no method."""
    in_process: bool = False
    """Train and score in this process, without Ray."""
    storage: StorageConfig = field(default_factory=lambda: StorageConfig(root="runs/arena"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", expanded(self.base, "base"))
        if self.half == "tuning" and self.recipes:
            raise ConfigError("half=tuning and recipes both choose adapters: leave one of them out")
