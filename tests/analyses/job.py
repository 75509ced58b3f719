"""A harvest of one real tiny adapter at two layers, with dictionaries fitted on it: what stages of forward
passes are tested on."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.harvest.key import harvest_key
from deltasae_ray.harvest.worker import HarvestFactory, HarvestPlan
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef, import_adapter
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.source import resolve_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.sae.fitting import fit_dictionary
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.records import Source, Unit, write_harvest, write_source, write_units
from deltasae_ray.storage import Storage
from tests.harvest.study import corpus


@dataclass(frozen=True)
class Job:
    """What a stage is given."""

    context: StageContext
    harvest_key: str
    adapters: tuple[AdapterRef, ...]
    leaves: tuple[LeafSpec, ...]
    cfg: DivergeConfig

    @property
    def storage(self) -> Storage:
        return self.context.storage


@pytest.fixture(scope="module")
def job(tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Shards that a rank's worker has written, and dictionaries fitted on them."""
    storage, cfg, texts = (
        Storage(str(tmp_path_factory.mktemp("study"))),
        ModelConfig(base=str(tiny_model)),
        corpus(tiny_model),
    )
    ref, model = import_adapter(storage, tiny_adapters[1], "r4", empty_model(tiny_model)), resolve_model(cfg)
    key, hookpoints = harvest_key(texts, model), (Hookpoint(1), Hookpoint(2))
    write_harvest(storage, key, {"d_model": 32})
    write_units(storage, key, map(Unit.of, texts.units))
    for source in (Source(BASE, "base", BASE), Source("r4", "adapter", ref.digest, rank=4)):
        write_source(storage, key, source)
    worker = HarvestFactory(HarvestPlan(storage, key, cfg, (ref,), hookpoints))(RankContext(0, 1, "cpu"))
    for unit in texts.units:
        missing = {name: [str(h) for h in hookpoints] for name in (BASE, ref.digest)}
        worker(unit, {"window": 0, "missing": missing}, keep=True)
    shards, leaves = open_harvest(storage, key), []
    for layer in (1, 2):
        for name in ("r4", BASE):
            rows = shards.read(layer, name, split="fit")[shards.tokens("fit").position > 0]
            fit_dictionary(rows, d_sae=48, k=4, steps=80, seed=0).save(
                storage.local(f"dictionaries/{name}-{layer}")
            )
        leaves.append(
            LeafSpec(
                "r4",
                layer,
                48,
                4,
                "topk",
                0,
                4,
                0,
                f"dictionaries/r4-{layer}",
                f"dictionaries/{BASE}-{layer}",
            )
        )
    context = StageContext(storage, cfg, model.digest, texts, GangConfig())
    return Job(context, key, (ref,), tuple(leaves), DivergeConfig(atoms=4))
