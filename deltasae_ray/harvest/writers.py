"""What low-rank coordinates are coordinates of: B of every module that an adapter adapts, kept beside its
shards."""

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import nn

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef, fetch
from deltasae_ray.models.local import lora_writers
from deltasae_ray.shards.records import read_sources, write_source, writers_file
from deltasae_ray.storage import Storage


def keep_writers(storage: Storage, key: str, adapter: AdapterRef, model: nn.Module) -> tuple[Hookpoint, ...]:
    """Writes B of all modules of an adapter whose source is on record, where it is not written yet; their
    hookpoints, ascending.

    Args:
        model: the base, without weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        writers = lora_writers(fetch(storage, [adapter], Path(scratch))[adapter.name], model)
    if not writers:
        return ()
    data = save({str(h): writer for h, writer in writers.items()})
    facts = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "ranks": {str(h): writer.shape[1] for h, writer in writers.items()},
    }
    source = next(s for s in read_sources(storage, key) if s.digest == adapter.digest)
    if source.facts.get("lora") != facts or not storage.exists(writers_file(key, adapter.digest)):
        storage.write_bytes(writers_file(key, adapter.digest), data)
        write_source(storage, key, replace(source, facts={**source.facts, "lora": facts}))
    return tuple(writers)
