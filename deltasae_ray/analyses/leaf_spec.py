"""One leaf of a study: which dictionary is compared with which, and the key under which its measures are
kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltasae_ray.analyses.config import NULL_DRAWS, SEED, DivergeConfig
from deltasae_ray.errors import DictionaryError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.sae.dictionary import CFG, Dictionary
from deltasae_ray.sae.identity import DictionaryId
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, digest, files_digest

METRICS_VERSION = 16
"""Part of every key: raise it when a metric changes its meaning or its numbers, and everything is measured
again."""


CODED = 1024
"""Tokens that are coded for all figures but M of single texts."""
_ROLES_IN_KEYS = ("base_control", "second", "half_a", "half_b", "gaussian", "frozen_decoder")
"""Roles that stand in every key, also where nothing was fitted for them; one that came later stands there
only where something was, so that what is measured already keeps its key."""


@dataclass(frozen=True, order=True)
class RandomCell:
    """Dictionaries of one random adapter, of one layer and shape."""

    source: str
    """Digest of the adapter among the harvest's sources."""
    dictionary: str
    others: tuple[str, ...]
    """From other seeds."""


@dataclass(frozen=True)
class LeafSpec(DictionaryId):
    """One dictionary of one adapter at one layer. Dictionaries are named by their key below the storage root,
    or by any folder."""

    rank: int | None
    """Of the adapter."""
    adapter_seed: int | None
    """Of the adapter's training."""
    dictionary: str
    """Of the deltas."""
    reference: str
    """What it is held against."""
    reference_name: str = "base dictionary"
    """What the reference is called in tables, such as `toy reference (15,000 tokens)`."""
    beside: tuple[tuple[str, str], ...] = ()
    """Role → the dictionary of a control that stands beside this one in it, as `analyses/controls.py` names
    roles."""
    siblings: tuple[str, ...] = ()
    """Base dictionaries that no figure but visibility reads, beside the base control."""
    release: tuple[str, ...] = ()
    """Other dictionaries of the reference's release: where there are some, visibility reads these in the
    place of base control and siblings."""
    randoms: tuple[RandomCell, ...] = ()
    """Dictionaries of random adapters of the same strength, which visibility reads."""

    def control(self, role: str) -> str | None:
        """The dictionary that stands beside this one in a role, where it was fitted."""
        return dict(self.beside).get(role)

    @property
    def shared(self) -> tuple:
        """Leaves that agree in this read the same rows, and are measured by one task."""
        return (self.place,)

    @property
    def dictionaries(self) -> dict[str, str | None]:
        """Role → key, the own dictionary and the reference included."""
        return (
            {"dictionary": self.dictionary, "reference": self.reference}
            | dict.fromkeys(_ROLES_IN_KEYS)
            | dict(self.beside)
        )


def settings_of(cfg: DivergeConfig) -> Settings:
    """What of the configuration decides a figure."""
    return Settings(
        k=cfg.atoms,
        code_tokens=min(cfg.code_tokens, CODED),
        null_draws=NULL_DRAWS,
        bootstrap=cfg.bootstrap,
        seed=SEED,
    )


def measures_key(storage: Storage, shards: ShardSet, leaf: LeafSpec, cfg: DivergeConfig) -> str:
    """File of the leaf's measures: made of the digests of everything they depend on, and of nothing else."""
    inputs = {
        "source": shards.source(leaf.adapter).digest,
        "dictionaries": {
            name: None if key is None else dictionary_digest(storage, key)
            for name, key in leaf.dictionaries.items()
        },
    }
    return f"measures/{figures_digest(shards, leaf.layer, cfg, inputs)}.json"


def figures_digest(shards: ShardSet, layer: int, cfg: DivergeConfig, inputs: Mapping[str, Any]) -> str:
    """A digest of what all figures at a layer depend on (version, units of the harvest, settings), and of the
    `inputs` that only some do."""
    shared = {
        "version": METRICS_VERSION,
        "harvest": shards.key,
        "units": digest([u.name for split in ("fit", "eval") for u in shards.units(split)]),
        "hookpoint": str(Hookpoint(layer)),
        "settings": asdict(settings_of(cfg)),
    }
    return digest({**shared, **inputs})


def dictionary_digest(storage: Storage, key: str) -> str:
    """A digest of a dictionary's files: as its manifest says, where it has one.

    Raises:
        DictionaryError: neither the storage root nor the machine has such a folder.
    """
    if _stored(storage, key, "manifest.json"):
        return str(storage.read_json(f"{key}/manifest.json")["digest"])
    folder = Path(key)
    if not _stored(storage, key, CFG) and not (folder / CFG).is_file():
        raise DictionaryError(
            f"{key!r} is no dictionary: there is no {CFG} in it, neither below {storage.root} nor on this"
            " machine"
        )
    if _stored(storage, key, CFG):
        return digest(
            {name.removeprefix(key): digest(storage.read_bytes(name).hex()) for name in storage.list(key)}
        )
    return files_digest(p for p in sorted(folder.iterdir()) if p.is_file())


def load_dictionary(storage: Storage, key: str, scratch: Path) -> Dictionary:
    """The dictionary of a key below the storage root, or of a folder."""
    if _stored(storage, key, CFG):
        return Dictionary.load(storage.get_folder(key, scratch / digest(key)))
    return Dictionary.load(key)


def _stored(storage: Storage, key: str, file: str) -> bool:
    """Whether the storage root has a file of a dictionary; a key that leads out of the root names a folder of
    this machine."""
    return not key.startswith("/") and ".." not in Path(key).parts and storage.exists(f"{key}/{file}")
