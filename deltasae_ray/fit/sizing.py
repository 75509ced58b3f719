"""The size that `fit.d_sae=auto` stands for, once the deltas are there."""

from collections.abc import Sequence
from typing import Any, cast

import torch

from deltasae_ray import stalls
from deltasae_ray.errors import PrecisionError, WorkerError
from deltasae_ray.heartbeat import Limits
from deltasae_ray.sae.fitting import auto_size, effective_rank
from deltasae_ray.sae.recipe import finite_rows
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage


def auto_d_sae(storage: Storage, harvest_key: str, adapters: Sequence[str], layers: Sequence[int]) -> int:
    """The next power of two above 8 · the largest effective rank over adapters and layers, at least 256.

    One size for all, since figures of dictionaries of different sizes do not compare. A Ray task per adapter
    and layer reads it.

    Deltas that no dictionary can be fitted to have no say: their own trial will fail, and the others are not
    harmed.

    Raises:
        PrecisionError: there are no others.
        ShardError: a harvest that is incomplete or damaged.
        WorkerError: a task's process was lost again and again.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task, limits = cast(Any, ray.remote(num_cpus=1)(stalls.watched)), Limits()
    ranks, unfit = [], []
    with stalls.warning_of_stalls():
        for asked in [
            task.remote(delta_rank, limits, storage, harvest_key, adapter, layer)
            for adapter in adapters
            for layer in layers
        ]:
            try:
                ranks.append(ray.get(asked))
            except RayTaskError as e:
                if not isinstance(e.cause, PrecisionError):
                    raise e.cause from None
                unfit.append(e.cause)
            except RayError as e:
                raise WorkerError(
                    f"a task that reads deltas was lost again and again: {e}. The same command tries it again"
                ) from e
    if not ranks:
        raise unfit[0]
    return auto_size(max(ranks))


def delta_rank(storage: Storage, harvest_key: str, adapter: str, layer: int) -> float:
    """Effective rank of an adapter's training rows at a layer, position 0 left out; 0 where it changes
    nothing."""
    shards = open_harvest(storage, harvest_key)
    rows = torch.from_numpy(shards.read(layer, adapter, split="fit")[shards.tokens("fit").used])
    return effective_rank(rows[finite_rows(rows)])
