"""Where runs are logged, and what each of them stands for."""

from dataclasses import dataclass, field

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded
from deltasae_ray.sae.identity import DictionaryId, Trial


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are logged."""

    uri: str = ""
    """MLflow server (http://…), with user:password@ where it asks for them. Empty: $DELTASAE_TRACKING_URI,
    else an embedded store, <storage.root>/mlflow.db, artifacts beside it."""
    experiment: str = "deltasae"
    """Name of the MLflow experiment."""

    def __post_init__(self) -> None:
        if self.uri:
            expanded(self.uri, "tracking.uri")
        if self.uri and not self.uri.lower().startswith(("http://", "https://")):
            raise ConfigError(
                f"tracking.uri={self.uri!r} is no server: give http://host:port, or leave it empty for the"
                " embedded store"
            )
        if not self.experiment.strip():
            raise ConfigError("tracking.experiment is empty: give the MLflow experiment a name")


@dataclass(frozen=True)
class TrialPoint(Trial):
    """What one trial run stands for."""

    rank: int
    """LoRA rank; 0 for a dictionary of base activations."""
    content: str = field(default="", kw_only=True)
    """Digest of what the names stand for (adapter, harvest): it tells runs apart, and is no parameter of the
    run."""

    @property
    def name(self) -> str:
        return f"{self.adapter} d_sae={self.d_sae} k={self.k} {self.architecture}"

    def leaf(self, layer: int, seed: int, reference: str) -> "LeafPoint":
        """The point of one dictionary of this trial, held against `reference`."""
        one = DictionaryId(self.adapter, layer, *self.shape, seed)
        return LeafPoint(**vars(one), rank=self.rank, reference=reference, content=self.content)


@dataclass(frozen=True)
class LeafPoint(DictionaryId):
    """What one leaf run stands for: a dictionary and the reference it is held against. Its fields are the
    run's parameters."""

    rank: int
    """LoRA rank; 0 for a dictionary of base activations."""
    reference: str
    content: str = field(default="", kw_only=True)
    """As of the trial's run."""

    @property
    def name(self) -> str:
        trial = TrialPoint(**vars(self.trial), rank=self.rank)
        return f"{trial.name} layer={self.layer} seed={self.seed}"
