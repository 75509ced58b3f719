"""Which harvest a root means."""

from functools import lru_cache
from pathlib import Path

from deltasae_ray.errors import ShardError
from deltasae_ray.paths import local_folder
from deltasae_ray.shards.manifest import Manifest, manifest_file
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.shards.records import Unit, read_record, read_sources, read_spec, read_units
from deltasae_ray.storage import Storage


def open_shards(root: str | Path) -> ShardSet:
    """The shards below a storage root, or of one harvest's folder: local, s3:// or gs://.

    A root with several harvests is opened at the one that its study.json names.

    Raises:
        ShardError: there is no harvest, or several and nothing says which.
    """
    storage = Storage(str(local_folder(root)) if str(root).startswith("~") else str(root))
    if storage.exists("harvest.json"):
        return open_harvest(*_parent(storage.root))
    study = _study(storage)
    keys = [
        f"harvest/{name}"
        for name in storage.folders("harvest")
        if storage.exists(f"harvest/{name}/harvest.json")
    ]
    if not keys:
        raise ShardError(
            f"there is no harvest below {storage.path('')}: run jobs/harvest.py with storage.root={root}"
        )
    if "harvest" not in study and len(keys) > 1:
        raise ShardError(
            f"{storage.path('')} has {len(keys)} harvests and no study.json that names one: open one of"
            f" {[storage.path(k) for k in keys]}"
        )
    key = study.get("harvest", keys[0])
    if key not in keys:
        raise ShardError(
            f"{storage.path('study.json')} names {key!r}, which is not there: run the study again, or open"
            f" one of {keys}"
        )
    return open_harvest(storage, key)


def open_harvest(storage: Storage, key: str) -> ShardSet:
    """The shards of the harvest in the folder `key`; of its sources, those that the root's study.json names,
    where it does."""
    study = _study(storage)
    sources = read_sources(storage, key)
    if study.get("harvest") == key and "sources" in study:
        sources = tuple(s for s in sources if s.digest in study["sources"])
    return ShardSet(
        storage=storage,
        key=key,
        spec=read_spec(storage, key),
        all_units=_units(storage, key, storage.stamp(f"{key}/units.json")),
        sources=sources,
        manifest=_manifest(storage, key),
    )


def _manifest(storage: Storage, key: str) -> Manifest:
    """Read anew where gangs have left records, or the file was written since this process last read it."""
    stamp = storage.stamp(manifest_file(key))
    if stamp is None or storage.list(f"{key}/rows", suffix=".json"):
        return Manifest.load(storage, key)
    return _compacted(storage, key, stamp)


@lru_cache(maxsize=2)
def _compacted(storage: Storage, key: str, _stamp: tuple[int, int]) -> Manifest:
    return Manifest.load(storage, key)


@lru_cache(maxsize=2)
def _units(storage: Storage, key: str, _stamp: tuple[int, int] | None) -> tuple[Unit, ...]:
    return tuple(sorted(read_units(storage, key), key=lambda u: u.name))


def _study(storage: Storage) -> dict:
    """What study.json says of which harvest and sources are the study's.

    Raises:
        ShardError: it is damaged.
    """
    record = read_record(storage, "study.json") if storage.exists("study.json") else {}
    names = record.get("sources", []) if isinstance(record, dict) else None
    if not isinstance(names, list) or not isinstance(record.get("harvest", ""), str):
        raise ShardError(
            f"{storage.path('study.json')} names no harvest and sources: run the study again, no shard is"
            " redone"
        )
    return record


def _parent(folder: str) -> tuple[Storage, str]:
    """The storage root above a harvest's folder, and its key there; what follows "?" in a URI stays with the
    root."""
    location, mark, query = (
        folder.partition("?") if "://" in folder else (str(Path(folder).absolute()), "", "")
    )
    parts = location.rstrip("/").split("/")
    depth = 2 if parts[-2] == "harvest" else 1  # a copied folder may lie anywhere
    return Storage("/".join(parts[:-depth]) + mark + query), "/".join(parts[-depth:])
