"""What a rank does with a unit: base once, each adapter once, subtract in fp32, write what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ResourceError
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
from deltasae_ray.shards.spool import wait_until_open, window_folder
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
    spool: str = ""
    """Folder of the windows of a stream; a stored harvest is window 0, and has none."""

    @property
    def deepest(self) -> int:
        """The last block that is needed."""
        return max(h.layer for hooks in (self.hookpoints, *self.lora.values()) for h in hooks)


class Todo(TypedDict):
    """What is to be done with a unit."""

    window: int
    """Of the stream; 0 where all is stored."""
    missing: dict[str, list[str]]
    """Source digest → hookpoints that are not written yet."""


class Done(TypedDict):
    """What was done with a unit."""

    window: int
    tokens: int


class HarvestWorker:
    """Callable of (unit, todo): waits until the unit's window is open, so that disk stays bounded, then
    writes what is missing."""

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

    def __call__(self, unit: TokenBatch, todo: Todo, *, keep: bool) -> Done:
        """Writes and commits the unit's shards."""
        plan, window = self._plan, todo["window"]
        if window and not wait_until_open(plan.storage, plan.spool, window):
            raise ResourceError(
                f"window {window + 1} of the stream was not harvested: the fit has ended, or its driver is"
                " gone"
            )
        key = window_folder(plan.key, plan.spool, window)
        return {"window": window, "tokens": self.write(unit, todo["missing"], key, keep=keep)}

    def write(self, unit: TokenBatch, todo: dict[str, list[str]], key: str, *, keep: bool) -> int:
        """Writes and commits the unit's shards below `key`; returns its tokens."""
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

    def done(self, unit: TokenBatch, todo: Todo) -> Done | None:
        """The unit's window and tokens, if its shards count already."""
        key = window_folder(self.plan.key, self.plan.spool, todo["window"])
        if not is_committed(self.plan.storage, key, unit.name, todo["missing"]):
            return None
        return {"window": todo["window"], "tokens": unit.num_tokens}

    def __call__(self, context: RankContext) -> HarvestWorker:
        return HarvestWorker(self.plan, context)
