"""The harvest on GPUs gives the deltas of the CPU: fp32 means fp32, and every rank drives the GPU that Ray
gave it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasae_ray.batches import TokenBatch
from deltasae_ray.harvest.prepare import PrepareFactory, sample
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef, import_adapter
from deltasae_ray.models.attached import load_with_adapters
from deltasae_ray.models.capture import unit_ids
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.shards import open_shards
from deltasae_ray.storage import Storage
from tests.harvest.study import corpus, replace_run_units, run, run_units_here
from tests.runtime.stub import UNITS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
HOOKPOINTS = (Hookpoint(1), Hookpoint(2))
Adapters = tuple[Path, Path]


@pytest.fixture(autouse=True)
def tf32_as_it_was() -> Iterator[None]:
    """On before the test, as another library may leave it: loading a model turns it off."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def imported(root: Path, model: Path, adapters: Adapters) -> tuple[Storage, tuple[AdapterRef, ...]]:
    storage, empty = Storage(str(root)), empty_model(model)
    return storage, tuple(import_adapter(storage, folder, folder.name, empty) for folder in adapters)


def taken(
    storage: Storage, model: Path, refs: tuple[AdapterRef, ...], device: str, unit: TokenBatch
) -> dict[tuple[str, Hookpoint], torch.Tensor]:
    """What a HarvestWorker takes of a unit before it is written, on the CPU."""
    loaded = load_with_adapters(storage, ModelConfig(base=str(model)), refs, device, deepest=2)
    assert {p.device.type for p in loaded.parameters()} | {b.device.type for b in loaded.buffers()} == {
        device
    }
    names = [ref.name for ref in refs]
    found = harvested_deltas(loaded, unit_ids(unit, device), HOOKPOINTS, names, together=False, bf16=False)
    return {(name, h): x.cpu() for name, by_hook in found for h, x in by_hook.items()}


def test_deltas_on_a_gpu_are_those_of_the_cpu_in_fp32(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    storage, refs = imported(tmp_path, tiny_model, tiny_adapters)
    unit = corpus(tiny_model).of("fit")[0]
    on_cpu, on_gpu = (taken(storage, tiny_model, refs, device, unit) for device in ("cpu", "cuda"))
    assert not torch.backends.cuda.matmul.allow_tf32
    for source, x in on_cpu.items():
        assert (on_gpu[source] - x).norm() <= 1e-5 * x.norm(), source


def test_a_harvest_on_a_gpu_writes_the_shards_of_one_on_the_cpu(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        replace_run_units(monkeypatch, partial(run_units_here, device=device))
        found[device] = open_shards(
            f"{tmp_path}/{device}/{run(tmp_path / device, tiny_model, list(tiny_adapters)).key}"
        )
    for source in ("base", "r2", "r4", "random"):
        on_cpu, on_gpu = (found[device].read(2, source) for device in ("cpu", "cuda"))
        assert np.linalg.norm(on_gpu - on_cpu) <= 5e-4 * np.linalg.norm(on_cpu)  # float16 on disk


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1e6), ("mixed", 10.0)])
def test_the_noise_floor_on_a_gpu_lets_trained_deltas_through(
    precision: Any, least: float, tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    storage, refs = imported(tmp_path, tiny_model, tiny_adapters)
    factory = PrepareFactory(storage, ModelConfig(base=str(tiny_model)), refs, HOOKPOINTS, precision)
    found = factory(RankContext(0, 1, "cuda"))(sample(corpus(tiny_model).of("fit"), 2), None, keep=True)
    floors = [floor for by_hook in found["noise"].values() for floor in by_hook.values()]
    assert len(floors) == 4 and all(floor["snr"] > least for floor in floors), floors


def test_training_and_a_harvest_take_no_more_memory_of_a_gpu_than_the_plan_says(tiny_model: Path) -> None:
    from deltasae_ray.adapt.text import split_text
    from deltasae_ray.adapt.trainer import LoraTrainer
    from deltasae_ray.models.load import load_model
    from deltasae_ray.models.size import model_size
    from deltasae_ray.study.config import StudyConfig
    from deltasae_ray.study.requirements import requirements
    from tests.adapt.worlds import config, contexts

    cfg = config("llama", max_tokens=400)
    torch.cuda.reset_peak_memory_stats()
    made = LoraTrainer(
        load_model(tiny_model, device="cuda"), split_text(contexts(), cfg.batch_contexts), cfg, rank=4, seed=0
    )
    while not made.progress.done:
        made.advance()
    told = requirements(StudyConfig(adapt=cfg), model_size(empty_model(tiny_model)))[0]
    assert (
        torch.cuda.max_memory_allocated() <= sum(part for _, part in told.parts) + 64e6
    )  # workspaces of the libraries


class Where:
    """Makes a worker that tells the device it was given, where its tensors then are, and how many GPUs torch
    sees."""

    def __call__(self, context: RankContext) -> Any:
        def tell(_unit: TokenBatch, _todo: Any, *, keep: bool) -> dict[str, Any]:
            return {
                "told": context.device,
                "is": torch.ones(1, device=context.device).device.type,
                "gpus": torch.cuda.device_count(),
            }

        return tell


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_gang_of_one_gpu_runs_on_it_and_one_that_asks_for_none_on_the_cpu() -> None:
    on_gpu = [result for _, result in run_units(UNITS, Where(), GangConfig(gpus_per_gang=1))]
    assert {(r["told"], r["is"], r["gpus"]) for r in on_gpu} == {("cuda", "cuda", 1)}
    on_cpu = [result for _, result in run_units(UNITS, Where(), GangConfig())]
    assert {(r["told"], r["is"]) for r in on_cpu} == {("cpu", "cpu")}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="ranks that share a model need a GPU each: two at least"
)
def test_two_zero3_ranks_on_a_gpu_each_write_the_deltas_of_one_process_on_the_cpu(
    tiny_model: Path, tiny_adapters: Adapters, tmp_path: Path
) -> None:
    whole = run(tmp_path / "cpu", tiny_model, list(tiny_adapters), random_lora=False)
    sharded = run(tmp_path / "gpus", tiny_model, list(tiny_adapters), random_lora=False, ranks=2, gpus=2)
    ours, theirs = open_shards(f"{tmp_path}/gpus/{sharded.key}"), open_shards(f"{tmp_path}/cpu/{whole.key}")
    for source in ("base", "r2", "r4"):
        a, b = ours.read(2, source), theirs.read(2, source)
        assert np.linalg.norm(a - b) <= 5e-4 * np.linalg.norm(b)
