"""What a rank does with a unit: base once, each adapter once, subtract in fp32, write what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deltasae_ray.batches import TokenBatch
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import load_with_adapters
from deltasae_ray.models.capture import unit_ids, unit_mask
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.local import reading_coordinates
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.manifest import commit_unit, is_committed
from deltasae_ray.shards.writer import write_shard
from deltasae_ray.storage import Storage


@dataclass(frozen=True)
class HarvestPlan:
    """Everything a rank needs to know; travels to every node."""

    storage: Storage
    key: str
    model: ModelConfig
    adapters: tuple[AdapterRef, ...]
    """Adapters with work left in this run. Every rank runs all of them on every unit, so that collectives
    stay in step."""
    hookpoints: tuple[Hookpoint, ...]
    """Of the residual stream: those of every source."""
    precision: Literal["fp32", "mixed"] = "fp32"
    model_digest: str | None = None
    """Of the driver's model: a node with another one refuses. None checks nothing."""
    lora: Mapping[str, tuple[Hookpoint, ...]] = field(default_factory=dict)
    """Adapter's name → hookpoints of its modules."""

    @property
    def deepest(self) -> int:
        """The last block that is needed."""
        return max(h.layer for hooks in (self.hookpoints, *self.lora.values()) for h in hooks)


class HarvestWorker:
    """Callable of (unit, todo): todo maps a source's digest to the hookpoints that are missing for this
    unit."""

    def __init__(self, plan: HarvestPlan, context: RankContext) -> None:
        self._plan = plan
        self._device = context.device
        self._model = load_with_adapters(
            plan.storage,
            plan.model,
            plan.adapters,
            context.device,
            deepest=plan.deepest,
            digest=plan.model_digest,
        )
        self._digests = {BASE: BASE} | {ref.name: ref.digest for ref in plan.adapters}

    def __call__(self, unit: TokenBatch, todo: dict[str, list[str]], *, keep: bool) -> int:
        """Writes and commits the unit's shards; returns its tokens."""
        return self.write(unit, todo, self._plan.key, keep=keep)

    def write(self, unit: TokenBatch, todo: dict[str, list[str]], key: str, *, keep: bool) -> int:
        """The same below another harvest's `key`."""
        mask = unit_mask(unit)
        written = []
        with reading_coordinates(self._model, self._plan.lora) as coordinates:
            sources = harvested_deltas(
                self._model, unit_ids(unit, self._device), self._plan.hookpoints,
                [a.name for a in self._plan.adapters],
                # sharded parameters are gathered for every pass: one pass shares the gathers
                together=self._plan.model.sharding != "none", bf16=self._plan.precision == "mixed",
            )  # fmt: skip
            for name, taken in sources:
                missing = todo.get(self._digests[name], [])
                if keep and missing:
                    wanted = taken | {h: coordinates[name, h] for h in self._plan.lora.get(name, ())}
                    vectors = {
                        h: wanted[h].float().cpu()[mask].numpy() for h in map(Hookpoint.parse, missing)
                    }
                    written.append(write_shard(self._plan.storage, key, self._digests[name], unit, vectors))
        if written:
            commit_unit(self._plan.storage, key, written)
        return unit.num_tokens


@dataclass(frozen=True)
class HarvestFactory:
    """Picklable maker of a rank's worker; knows which units a lost gang has committed."""

    plan: HarvestPlan

    def done(self, unit: TokenBatch, todo: dict[str, list[str]]) -> int | None:
        """The unit's tokens, if its shards count already."""
        return unit.num_tokens if is_committed(self.plan.storage, self.plan.key, unit.name, todo) else None

    def __call__(self, context: RankContext) -> HarvestWorker:
        return HarvestWorker(self.plan, context)
