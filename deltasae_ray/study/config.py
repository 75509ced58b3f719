"""The whole study in one frozen value. Every job takes the same words and reads its own part."""

from dataclasses import dataclass, field

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.config import FitConfig, ReferenceConfig
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.paths import expanded
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.storage import StorageConfig
from deltasae_ray.tracking import TrackingConfig


@dataclass(frozen=True)
class StudyConfig:
    """What did LoRA adapters add to a model, and can a dictionary made for the base model see it?"""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapters: tuple[str, ...] = ()
    """Folders, or hub ids (`owner/name[@revision]`), of LoRA adapters. Empty: train one per adapt.ranks and seed."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    layers: tuple[int, ...] = (9, 12, 15)
    """Blocks after which the residual stream is read, counted from 0."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    gangs: GangConfig = field(default_factory=GangConfig)
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    diverge: DivergeConfig = field(default_factory=DivergeConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    dry_run: bool = False
    """Print the plan and stop. Nothing is written, and of what lies on the hub only config and tokenizer are downloaded."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", tuple(expanded(place, "adapters") for place in self.adapters))
        if not self.layers:
            raise ConfigError("layers is empty: name at least one block, such as layers=[9]")


SHORTHAND = {"reference": "reference.source", "controls": "diverge.controls"}
"""`reference=base` means `reference.source=base`."""
