"""Folders of adapters, screened one after the other without a forward pass, and held against a reference
set."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltasae_ray.analyses.screen.figures import FIGURES, Screened, Standing, screened, standing
from deltasae_ray.errors import AdapterError, ConfigError
from deltasae_ray.metrics.geometry.weight_products import products
from deltasae_ray.models.adapter_files import read_config, read_tensors
from deltasae_ray.models.load import load_ends


@dataclass(frozen=True, eq=False)
class Ends:
    """What tokens enter the residual stream as, and what reads them off it."""

    embedding: Tensor
    unembedding: Tensor

    @staticmethod
    def of(folder: Path, *, trust_remote_code: bool = False) -> "Ends":
        """Reads the two ends of the model in a folder; nothing else of its checkpoint is read."""
        model = load_ends(folder, trust_remote_code=trust_remote_code)
        ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        return Ends(ends[0].weight.detach(), ends[1].weight.detach())


@dataclass(frozen=True)
class Screening:
    """One adapter, and where each figure stands among the reference adapters."""

    name: str
    screened: Screened
    standings: dict[str, Standing]
    seconds: float
    """What reading and screening it took; the model's ends are read once for all."""


def screen_one(folder: Path, ends: Ends) -> Screened:
    """The figures of the adapter in a folder.

    Raises:
        AdapterError: no LoRA adapter, one with magnitudes (DoRA), whose change is not B·A alone, or one that
            was made for another width.
    """
    config, tensors = read_config(folder), read_tensors(folder)
    if config.get("use_dora"):
        raise AdapterError(
            f"{folder} has magnitudes (DoRA): its change depends on the base's weights, which the screen does"
            " not read. Compare it by a study instead"
        )
    rank = float(config["r"])
    scale = float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
    changes = products(tensors, scale)
    width = ends.embedding.shape[1]
    if changes and all(width not in (len(p.left), len(p.right)) for p in changes):
        raise AdapterError(
            f"{folder}: no module reads or writes a residual stream of {width}: made for another model"
        )
    return screened(changes, ends.embedding, ends.unembedding)


def screen(adapters: Sequence[Path], reference: Sequence[Path], ends: Ends) -> list[Screening]:
    """Screens adapters and says where their figures stand among those of the reference adapters.

    An adapter that is itself in the reference set is not held against itself.

    Raises:
        ConfigError: no adapter was given.
        AdapterError: see `screen_one`.
    """
    if not adapters:
        raise ConfigError("adapters is empty: name the folders of the adapters to screen")
    known: Mapping[Path, Screened] = {f.resolve(): screen_one(f, ends) for f in reference}
    screenings = []
    for folder in adapters:
        began = time.perf_counter()
        with torch.no_grad():
            screened = screen_one(folder, ends)
        others = [one for path, one in known.items() if path != folder.resolve()]
        standings = {n: standing(screened.figures[n], [o.figures[n] for o in others]) for n in FIGURES}
        screenings.append(Screening(folder.name, screened, standings, time.perf_counter() - began))
    return screenings
