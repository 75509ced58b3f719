"""One of two processes that train adapters on one sharded model, without Ray; writes its curve and adapter.
Run by test_sharded.py."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.text import split_text
from deltasae_ray.adapt.trainer import LoraTrainer
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import base_of, load_model
from deltasae_ray.models.zero3 import run_sharded, sharded_loading
from deltasae_ray.sae.peers import Peers, ProcessGroup
from tests.adapt.worlds import config, contexts


def config_of(world: dict[str, Any]) -> AdaptConfig:
    """Trains up to the token cap, whatever is gained."""
    sizes = {name: world[name] for name in ("batch_contexts", "max_tokens")}
    return config(world["kind"], ranks=(4,), stop_at_se=1000.0, **sizes)


def train(model: Any, world: dict[str, Any], peers: Peers | None = None) -> LoraTrainer:
    cfg = config_of(world)
    made = LoraTrainer(model, split_text(contexts(), cfg.batch_contexts), cfg, rank=4, seed=0, peers=peers)
    while not made.progress.done:
        made.advance()
    return made


def main(work: Path, rank: int) -> None:
    for world in json.loads(work.read_text()):
        cfg = ModelConfig(world["model"], sharding="zero3", weights=world.get("weights", "fp32"))
        with sharded_loading(cfg, Path(world["model"]), "cpu"):
            model = load_model(Path(world["model"]))
        model = run_sharded(model, cfg, Path(world["model"]), "cpu", base_of)
        gc.collect()  # what installed the gathers must not take them along when it goes
        made = train(model, world, ProcessGroup(rank, 2))
        kept = sum(p.numel() for name, p in made.model.named_parameters() if ".lora_" not in name)
        assert kept == 0, f"the base is sharded: {kept} of its numbers stay whole between passes"
        folder = Path(world["ranks"][rank])
        folder.mkdir()
        made.write_adapter(folder, "tiny")
        (folder / "curve.json").write_text(json.dumps(made.progress.curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
