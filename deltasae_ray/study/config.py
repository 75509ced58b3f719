"""The whole study in one frozen value. Every job takes the same words and reads its own part."""

from dataclasses import dataclass, field
from pathlib import Path

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.elicit.config import ElicitConfig
from deltasae_ray.errors import ConfigError
from deltasae_ray.fit.config import FitConfig, ReferenceConfig
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.paths import expanded
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.study.storage_config import StorageConfig
from deltasae_ray.tracking import TrackingConfig


@dataclass(frozen=True)
class StudyConfig:
    """What did LoRA adapters add to a model, and can a dictionary made for the base model see it?"""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapters: tuple[str, ...] = ()
    """Folders, or hub ids (`owner/name[@revision]`), of LoRA adapters. Empty: train one per adapt.ranks and
    seed."""
    monitors: tuple[str, ...] = ()
    """Folders of probes, or of dictionaries with chosen latents, that you run on the base model: how well
    each works on the adapted models (docs/monitors.md)."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    layers: tuple[int, ...] = (9, 12, 15)
    """Blocks after which the residual stream is read, counted from 0."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    gangs: GangConfig = field(default_factory=GangConfig)
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    elicit: ElicitConfig = field(default_factory=ElicitConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    diverge: DivergeConfig = field(default_factory=DivergeConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    dry_run: bool = False
    """Print the plan and stop. Nothing is written, and of what lies on the hub only config and tokenizer are
    downloaded."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", tuple(expanded(place, "adapters") for place in self.adapters))
        object.__setattr__(self, "monitors", tuple(expanded(place, "monitors") for place in self.monitors))
        if not self.layers:
            raise ConfigError("layers is empty: name at least one block, such as layers=[9]")


SHIPPED = Path(__file__).parents[1] / "configs"
"""Configurations that come with the package: `config=demo` reads demo.yaml."""

SHORTHAND = {"reference": "reference.source", "controls": "diverge.controls"}
"""`reference=base` means `reference.source=base`."""

FIRST = {
    "model.base": "the base model: a folder, a hub id, or builtin:gemma3-270m",
    "adapters": "LoRA adapters under study; empty: they are trained",
    "corpus.path": "text that the adapters were, or will be, trained on",
    "corpus.unrelated": "texts that they were not trained on",
    "corpus.format": "text, or chat for conversations",
    "corpus.context_len": "tokens per context",
    "corpus.fit_tokens": "tokens that dictionaries are trained on; 0: what they need",
    "corpus.eval_tokens": "tokens that figures are measured on",
    "layers": "blocks after which the residual stream is read, from 0",
    "adapt.ranks": "LoRA ranks to train where no adapters are given",
    "adapt.seeds": "adapters per rank; 2 for a claim about rank",
    "fit.d_sae": "dictionary sizes in latents, or auto",
    "fit.k": "active latents per token",
    "fit.seeds": "dictionaries per size; 2 for intervals over seeds",
    "fit.steps": "optimizer steps per dictionary",
    "reference.source": "the base model's dictionary; base fits a toy one",
    "diverge.controls": "fast, full, or controls by name",
    "storage.root": "folder, s3:// or gs:// for all that is made",
    "tracking.uri": "MLflow server; empty: a store below the root",
    "dry_run": "true: print the plan and stop",
}
"""What `--help` shows before all options by group: the twenty that most studies set, with a line each."""
