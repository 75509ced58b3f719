"""The audit as Ray tasks, one per adapter and layer: figures of latents, and the directions that a lens and
interventions are tried on."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import torch
from jaxtyping import Float

from deltasae_ray.analyses.audit.figures import Audit, AuditInputs, audit
from deltasae_ray.analyses.config import SEED, DivergeConfig
from deltasae_ray.analyses.divergence.task import seen_alive
from deltasae_ray.analyses.leaf_spec import (
    LeafSpec,
    dictionary_digest,
    figures_digest,
    load_dictionary,
    settings_of,
)
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.errors import StorageError
from deltasae_ray.metrics.moments import Moments, matched_rows
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage

MEAN, FIRST = "mean", "first tokens"
"""Names of directions that are no latents: the mean change, and that on the first tokens of unrelated
text."""
FIRST_POSITIONS = 4
"""Of each context of unrelated text, BOS not counted."""
RANDOM = 64
"""Random directions, from N(0, Σ_δ): what a lens reads in no direction in particular; interventions take the
first few."""


@dataclass(frozen=True)
class AuditSpec:
    """One dictionary that is audited, and the same recipe on the same deltas from other seeds."""

    leaf: LeafSpec
    others: tuple[str, ...]

    @classmethod
    def of(cls, leaf: LeafSpec, leaves: Sequence[LeafSpec]) -> "AuditSpec":
        """The seeds of the grid, and the one that a control has fitted beside them."""
        alike = [o.dictionary for o in leaves if o.cell == leaf.cell and o.dictionary != leaf.dictionary]
        return cls(
            leaf, tuple(dict.fromkeys([*alike, *([second] if (second := leaf.control("second")) else [])]))
        )


@dataclass(frozen=True)
class Audited:
    """What one task found; the directions lie beside it."""

    key: str
    """Folder below the storage root."""
    audit: Audit
    directions: tuple[str, ...]
    """Names, in the order of their rows: MEAN, FIRST where there is unrelated text, latents by number; the
    random ones follow."""
    first_tokens: int
    """Tokens of unrelated text behind FIRST."""

    def vectors(self, storage: Storage) -> tuple[np.ndarray, np.ndarray]:
        """(a row per name, the random ones)."""
        rows = read_directions(storage, self.key)
        return rows[: len(self.directions)], rows[len(self.directions) :]


FIGURES, DIRECTIONS = "audit.json", "directions.npy"


def read_directions(storage: Storage, key: str) -> Float[np.ndarray, "direction d_model"]:
    """Directions of the audit below `key`, the named ones first.

    Raises:
        StorageError: the file is damaged.
    """
    name = f"{key}/{DIRECTIONS}"
    try:
        return np.load(BytesIO(storage.read_bytes(name)), allow_pickle=False)
    except (ValueError, EOFError) as e:
        raise StorageError(
            f"{storage.path(name)} holds no directions ({e}): delete the folder {key} and run again"
        ) from e


@dataclass(frozen=True)
class AuditTask:
    """Travels to the task."""

    storage: Storage
    harvest_key: str
    spec: AuditSpec
    key: str
    cfg: DivergeConfig


def audit_leaves(
    storage: Storage, harvest_key: str, specs: Sequence[AuditSpec], cfg: DivergeConfig
) -> dict[LeafSpec, Audited]:
    """Audits what has none yet; returns all.

    Raises:
        DeltaSaeError: what a task raised on purpose.
    """
    shards = open_harvest(storage, harvest_key)
    keys = {spec: audit_key(storage, shards, spec, cfg) for spec in specs}
    todo = [
        AuditTask(storage, harvest_key, s, key, cfg)
        for s, key in keys.items()
        if not storage.exists(f"{key}/{FIGURES}")
    ]
    run_tasks([(audit_leaf, task) for task in todo], 1.0, bar="audit")
    return {spec.leaf: read_audited(storage, key) for spec, key in keys.items()}


def audit_key(storage: Storage, shards: ShardSet, spec: AuditSpec, cfg: DivergeConfig) -> str:
    """Folder of an audit, made of the digests of what it depends on."""
    leaf = spec.leaf
    inputs = {
        "source": shards.source(leaf.adapter).digest,
        "latents": cfg.latents,
        "dictionaries": [
            dictionary_digest(storage, key) for key in (leaf.dictionary, leaf.reference, *spec.others)
        ],
    }
    return f"audit/{figures_digest(shards, leaf.layer, cfg, inputs)}"


def audit_leaf(task: AuditTask) -> None:
    """Reads the rows of one adapter and layer, audits its dictionary, and stores figures and directions."""
    leaf, storage, cfg = task.spec.leaf, task.storage, task.cfg
    shards = open_harvest(storage, task.harvest_key)
    fit_kept, tokens = shards.tokens("fit").used, shards.tokens("eval")
    delta, base = (shards.read(leaf.layer, source, split="fit")[fit_kept] for source in (leaf.adapter, BASE))
    held_out = shards.read(leaf.layer, leaf.adapter, split="eval")
    with tempfile.TemporaryDirectory() as scratch:
        own, reference, *others = (
            load_dictionary(storage, k, Path(scratch))
            for k in (leaf.dictionary, leaf.reference, *task.spec.others)
        )
    reference = seen_alive(reference, lambda: base)
    moments = Moments.of(delta)
    inputs = AuditInputs(own, reference, others, moments, Moments.of(base).spectrum, held_out[tokens.used])
    result = audit(inputs, settings_of(cfg))
    unrelated = (tokens.corpus != DOMAIN) & tokens.used & (tokens.position <= FIRST_POSITIONS)
    named = {MEAN: moments.mean.float()} if result.rows else {}
    if result.rows and unrelated.any():
        named[FIRST] = torch.from_numpy(held_out[unrelated].astype(np.float64).mean(0)).float()
    named |= {str(i): own.W_dec[i].detach().float() for i in shown_latents(result, cfg.latents)}
    random = matched_rows(
        moments.spectrum, RANDOM if result.rows else 0, torch.Generator().manual_seed(SEED + 1)
    )
    sink = BytesIO()
    np.save(sink, torch.cat([*(v[None] for v in named.values()), random]).numpy())
    storage.write_bytes(f"{task.key}/{DIRECTIONS}", sink.getvalue())
    facts = {"directions": list(named), "first_tokens": int(unrelated.sum()), "audit": asdict(result)}
    storage.write_json(f"{task.key}/{FIGURES}", facts)  # last: that it exists means that all is there


def shown_latents(result: Audit, count: int) -> list[int]:
    """The first `count` latents by rank, then those of the first `count` peaks that are not among them."""
    latents = [row for row in result.rows if row.latent is not None]
    loudest = sorted(latents, key=lambda row: row.peak_rank or 0)[:count]
    return list(dict.fromkeys(row.latent for row in latents[:count] + loudest if row.latent is not None))


def read_audited(storage: Storage, key: str) -> Audited:
    """The audit that is stored under a key.

    Raises:
        StorageError: the file is damaged, or of another version.
    """
    record = storage.read_json(f"{key}/{FIGURES}")
    try:
        return Audited(
            key, msgspec.convert(record["audit"], Audit), tuple(record["directions"]), record["first_tokens"]
        )
    except (msgspec.ValidationError, KeyError, TypeError, AssertionError) as e:
        raise StorageError(
            f"{storage.path(key)}/{FIGURES} holds no audit ({e!r}): delete the folder {key} and run again"
        ) from e
