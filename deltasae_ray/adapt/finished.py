"""What a training leaves in the storage: the adapter's two files, and a manifest last."""

import tempfile
from pathlib import Path

from deltasae_ray.adapt.trainer import LoraTrainer
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, content_digest
from deltasae_ray.storage import Storage


def write_finished(trainer: LoraTrainer, storage: Storage, key: str, label: str) -> None:
    """Writes the adapter below `key`; it counts once its manifest is there.

    Args:
        label: what the adapter's config calls its base model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer.write_adapter(Path(scratch), label)
        for file in (CONFIG, WEIGHTS):
            storage.write_bytes(f"{key}/{file}", (Path(scratch) / file).read_bytes())
        content = content_digest(Path(scratch))
    manifest = {
        "digest": content,
        "rank": trainer.rank,
        "alpha": trainer.alpha,
        "seed": trainer.seed,
        "facts": trainer.facts(),
    }
    storage.write_json(f"{key}/manifest.json", manifest)
