"""A reference that the user gave, and its siblings: opened, checked, and kept below the storage root."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deltasae_ray.errors import DictionaryError
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.models.source import ModelSource
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.identity import BASE
from deltasae_ray.sae.made_for import BaseModel, check_model
from deltasae_ray.sae.saelens import Reference, check_reference, load_reference, resolve_references
from deltasae_ray.sae.siblings import FEWEST, siblings
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage, files_digest
from deltasae_ray.study.config import StudyConfig

log = logging.getLogger(__name__)


def keep_references(
    cfg: StudyConfig, storage: Storage, model: ModelSource
) -> tuple[dict[int, str], dict[int, tuple[str, ...]]]:
    """Opens every layer's reference before work starts, and keeps it in raw units where all nodes find it. A
    dry run opens those that are folders and keeps none; of a release it looks up names and model."""
    keys: dict[int, str] = {}
    beside: dict[int, tuple[str, ...]] = {}
    base, made_for = BaseModel(model.label, model.name, model.kind, model.d_model), cfg.reference.made_for
    references = resolve_references(cfg.reference.source, cfg.layers, cfg.reference.ids)
    for reference in references.values():  # before the first is downloaded
        check_model(reference, reference.model, base, made_for)
    for layer, reference in references.items():
        if cfg.dry_run and not reference.folder:
            continue
        dictionary = load_reference(reference, base, made_for)
        if cfg.dry_run:
            beside[layer] = tuple(map(str, siblings(reference)))
            continue
        keys[layer] = _kept_dictionary(storage, dictionary)
        if "base" in cfg.diverge.chosen:
            beside[layer] = _kept_siblings(storage, reference, base, made_for)
    return keys, beside


def _kept_dictionary(storage: Storage, dictionary: Dictionary) -> str:
    """Folder below the storage root into which the dictionary was copied."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = dictionary.save(Path(scratch) / "reference")
        key = f"references/{files_digest(p for p in sorted(folder.iterdir()) if p.is_file())}"
        storage.put_folder(folder, key)
    return key


def _kept_siblings(storage: Storage, reference: Reference, base: BaseModel, made_for: str) -> tuple[str, ...]:
    """Siblings of the reference's release that can be had; none where they are too few to tell what
    repeats."""
    kept = []
    for other in siblings(reference):
        try:
            kept.append(_kept_dictionary(storage, load_reference(other, base, made_for)))
        except DictionaryError as e:  # not in the cache of a machine without a network, or of another place
            log.warning("%s is not set beside %s: %s", other, reference, e)
    return tuple(kept) if len(kept) >= FEWEST else ()


def check_references(storage: Storage, references: Mapping[int, str], harvest: Harvest) -> None:
    """Holds every pretrained reference against the base activations it is meant for.

    Args:
        references: layer → folder below the storage root.

    Raises:
        DictionaryError: it leaves more than 60 % of them unexplained; the likely cause is named.
    """
    shards = open_harvest(storage, harvest.key)
    for layer, key in references.items():
        with tempfile.TemporaryDirectory() as scratch:
            dictionary = Dictionary.load(storage.get_folder(key, Path(scratch)))
        check_reference(dictionary, shards.read(layer, BASE, split="eval")[shards.tokens("eval").used])
