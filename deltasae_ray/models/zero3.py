"""DeepSpeed ZeRO-3: parameters sharded over the ranks of a gang. The only file that knows DeepSpeed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

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
    """Shards what is not sharded yet (the adapters) and installs the gathers around every module of `root(model)`.

    Forward passes must go through `root(model)`, and every rank must make the same passes in the same order.
    """
    import deepspeed

    deepspeed.initialize(model=root(model), config=_CONFIG)
    return model
