"""DeepSpeed ZeRO-3: parameters sharded over the ranks of a gang. The only file that knows DeepSpeed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltasae_ray.errors import ModelError
from deltasae_ray.models.casts import widen
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import backbone, base_of, empty_model
from deltasae_ray.models.replaced import replacing

_BUFFER = 100_000_000
"""Entries of a buffer that DeepSpeed reads a file into, where no share of a parameter is larger."""


def deepspeed_config(cfg: ModelConfig, device: str, largest_share: int = 0) -> dict[str, Any]:
    """Builds DeepSpeed's configuration of a gang's ranks.

    Args:
        device: that the ranks compute on, cpu or cuda.
        largest_share: entries of the largest share of any parameter that a rank holds; looked at where
            model.offload is a folder.
    """
    offload: dict[str, Any] = {}
    if cfg.offload != "none":
        # A share that is larger than the buffer is an assertion of DeepSpeed's, in the first pass: an
        # embedding easily is.
        files = (
            {"nvme_path": cfg.offload, "buffer_size": max(_BUFFER, largest_share)}
            if cfg.offloads_to_files
            else {}
        )
        device_name = "nvme" if files else cfg.offload
        offload = {"offload_param": {"device": device_name, "pin_memory": device == "cuda", **files}}
    # Threshold 0: every parameter is sharded. No prefetching: switching adapters changes the order in which
    # modules run.
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
    }
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero | offload}


@contextmanager
def sharded_loading(cfg: ModelConfig, folder: Path, device: str) -> Iterator[None]:
    """Inside, `from_pretrained` shards each weight as it is read, so that no rank ever holds the whole model.

    Args:
        folder: of the model that is loaded.
        device: that this process computes on. It may see GPUs that it did not ask for, and DeepSpeed would
            take the first.

    Raises:
        ModelError: model.offload is a folder, and DeepSpeed cannot write files as they need to be written.
    """
    import deepspeed
    import deepspeed.ops
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    check_offload(cfg)
    # An all-reduce in shared memory, which a forward pass never calls. It is compiled when the first gang
    # starts, behind a lock file that a killed rank leaves behind: every later gang on the machine would wait
    # for it without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _compute_on(device)
    deepspeed.init_distributed(
        dist_backend="nccl" if device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    # transformers holds it weakly: it must stay alive while the model is built
    kept = HfDeepSpeedConfig(deepspeed_config(cfg, device, _largest_share(cfg, folder)))
    try:
        yield
    finally:
        del kept
        unset_hf_deepspeed_config()


def _compute_on(device: str) -> None:
    """Lets DeepSpeed put shares on the CPU of a machine with GPUs."""
    from deepspeed.accelerator import get_accelerator, set_accelerator

    accelerator: Any = get_accelerator()
    if device == "cpu" and accelerator.device_name() != "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())


def _largest_share(cfg: ModelConfig, folder: Path) -> int:
    """Entries, rounded up to what DeepSpeed pads to; 0 where nobody asks."""
    if not cfg.offloads_to_files:
        return 0
    largest = max(
        p.numel() for p in empty_model(folder, trust_remote_code=cfg.trust_remote_code).parameters()
    )
    return -(-largest // torch.distributed.get_world_size()) + 4096


def check_offload(cfg: ModelConfig) -> None:
    """Raises ModelError where model.offload is a folder, and DeepSpeed cannot read and write files
    asynchronously."""
    if not cfg.offloads_to_files:
        return
    from deepspeed.ops.op_builder.async_io import AsyncIOBuilder

    if not torch.cuda.is_available():
        raise ModelError(
            f"model.offload={cfg.offload} needs a GPU on every node: for CPUs, DeepSpeed compiles its file"
            " access without linking libaio, so that it cannot be loaded. Set model.offload=cpu, which keeps"
            " shares in memory"
        )
    if not AsyncIOBuilder().is_compatible():
        raise ModelError(
            f"model.offload={cfg.offload} needs libaio with its headers (libaio-dev on Debian, libaio-devel"
            " on Red Hat) and a C++ compiler on every node: install them, or set model.offload=cpu"
        )


def run_sharded(
    model: nn.Module, cfg: ModelConfig, folder: Path, device: str, root: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Shards what is not sharded yet (adapters that are attached by now) and installs the gathers around
    every module of `root(model)`.

    Weights that one module reads of another (DoRA, LoRA on embeddings) DeepSpeed gathers as they are read; of
    the latter the factors then stay whole. Passes, forward and backward, must go through modules of
    `root(model)`, and every rank must make the same passes in the same order.
    """
    import deepspeed

    if cfg.weights == "bf16":
        for parameter in base_of(model).parameters():
            if (share := getattr(parameter, "ds_tensor", None)) is not None:
                share.data, parameter.data = share.data.bfloat16(), parameter.data.bfloat16()
        widen(model, torch.float32)
    engine, *_ = deepspeed.initialize(
        model=root(model), config=deepspeed_config(cfg, device, _largest_share(cfg, folder))
    )
    if values := replacing(model):
        shared: Any = next(root(model).parameters())
        shared.convert_to_zero_parameters(param_list=values)
    gathers: Any = engine.optimizer
    if root(model) is not (stack := backbone(model)):
        # DeepSpeed would take all passes that do not begin at the root for one, and its record of them would
        # grow without end.
        stack.register_forward_pre_hook(lambda *_: gathers.get_param_coordinator().reset_step(), prepend=True)
    return model


@contextmanager
def whole(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules' own parameters stand whole, also where they are sharded; all ranks must enter at
    the same time."""
    parameters = [p for module in modules for p in module.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield
