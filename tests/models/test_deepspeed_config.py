"""What is asked of DeepSpeed, read by DeepSpeed's own classes, as on GPUs: no GPU is needed for that."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.models import zero3
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.zero3 import deepspeed_config

WAYS = list(itertools.product(("none", "cpu", "nvme"), ("cpu", "cuda")))


def built(offload: Any, device: str, largest_share: int = 0) -> dict[str, Any]:
    return deepspeed_config(
        ModelConfig("any", sharding="zero3", offload="/fast" if offload == "nvme" else offload),
        device,
        largest_share,
    )


@pytest.mark.parametrize(("offload", "device"), WAYS)
def test_deepspeed_reads_what_it_is_asked_and_knows_every_word(
    offload: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    monkeypatch.setenv("WORLD_SIZE", "4")
    asked = built(offload, device)
    read = DeepSpeedConfig(asked)
    zero = read.zero_config
    assert read.zero_enabled and zero.stage == 3 and read.train_micro_batch_size_per_gpu == 1
    # Every parameter is sharded, nothing is fetched ahead, and none is kept for later: adapters change the
    # order of modules.
    assert (zero.param_persistence_threshold, zero.prefetch_bucket_size, zero.max_reuse_distance) == (0, 0, 0)
    assert not read.float16_config.enabled and not read.bfloat16_config.enabled, (
        "adapters and activations are fp32"
    )
    if offload == "none":
        assert zero.offload_param is None
    else:
        assert (zero.offload_param.device, zero.offload_param.pin_memory) == (offload, device == "cuda")
    # DeepSpeed's classes let words pass that they do not know.
    names = {name for key, field in DeepSpeedZeroConfig.model_fields.items() for name in (key, field.alias)}
    assert set(asked["zero_optimization"]) <= names
    assert set(asked["zero_optimization"].get("offload_param", {})) <= set(
        type(zero.offload_param).model_fields if zero.offload_param else ()
    )


def test_a_file_buffer_holds_the_largest_share_of_any_parameter() -> None:
    """DeepSpeed's own size is 100 million entries: a quarter of Gemma 2 9B's embedding is 229 million, an
    assertion in the first pass."""
    share = 256_000 * 3_584 // 4
    assert built("nvme", "cuda", share)["zero_optimization"]["offload_param"]["buffer_size"] >= share
    assert built("nvme", "cuda")["zero_optimization"]["offload_param"]["buffer_size"] == 100_000_000
    assert "buffer_size" not in built("cpu", "cuda", share)["zero_optimization"]["offload_param"]


def test_the_largest_share_is_read_from_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    nvme = ModelConfig("any", sharding="zero3", offload="/fast")
    assert 320 * 32 // 4 < zero3._largest_share(nvme, tiny_model) <= 320 * 32 // 4 + 4096
    assert zero3._largest_share(ModelConfig("any", sharding="zero3"), tiny_model) == 0


def test_a_process_that_asked_for_no_gpu_keeps_its_shares_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training worker sees all GPUs of its machine whatever it asked for, and DeepSpeed would put every
    worker on the first."""
    from deepspeed.accelerator import get_accelerator, real_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    monkeypatch.setattr(real_accelerator, "ds_accelerator", CUDA_Accelerator())
    zero3._compute_on("cuda")
    assert get_accelerator().device_name() == "cuda"
    zero3._compute_on("cpu")
    assert get_accelerator().device_name() == "cpu"
