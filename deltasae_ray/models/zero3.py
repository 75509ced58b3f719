"""DeepSpeed ZeRO-3: parameters sharded over the ranks of a gang. The only file that knows DeepSpeed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from deltasae_ray.models.load import backbone

_CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    # Threshold 0: every parameter is sharded. No prefetching: switching adapters changes the order in which modules run.
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
    },
}


@contextmanager
def sharded_loading() -> Iterator[None]:
    """Inside, `from_pretrained` shards each weight as it is read, so that no rank ever holds the whole model."""
    import deepspeed
    import deepspeed.ops
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # An all-reduce in shared memory, which a forward pass never calls. It is compiled when the first gang starts, behind a lock file that
    # a killed rank leaves behind: every later gang on the machine would wait for it without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False, verbose=False)
    kept = HfDeepSpeedConfig(_CONFIG)  # transformers holds it weakly: it must stay alive while the model is built
    try:
        yield
    finally:
        del kept
        unset_hf_deepspeed_config()


def run_sharded(model: nn.Module, root: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Shards what is not sharded yet (adapters that are attached by now) and installs the gathers around every module of `root(model)`.

    Passes, forward and backward, must go through modules of `root(model)`, and every rank must make the same passes in the same order.
    """
    import deepspeed

    engine, *_ = deepspeed.initialize(model=root(model), config=_CONFIG)
    gathers: Any = engine.optimizer
    if root(model) is not (stack := backbone(model)):
        # DeepSpeed would take all passes that do not begin at the root for one, and its record of them would grow without end.
        stack.register_forward_pre_hook(lambda *_: gathers.get_param_coordinator().reset_step(), prepend=True)
    return model


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, the module's own parameters stand whole, also where they are sharded; all ranks must enter at the same time."""
    parameters = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield
