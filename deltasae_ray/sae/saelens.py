"""Reference dictionaries from elsewhere: SAELens releases, its folders, and Gemma Scope's own files.

The only file that imports sae_lens, and inside a function: it takes 9 s to import and changes often.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.hookpoints import Hookpoint, place_of
from deltasae_ray.sae import dictionary_learning, sparsify
from deltasae_ray.sae.dictionary import CFG, WEIGHTS, Dictionary, read_tensors
from deltasae_ray.sae.gemma_scope import no_dictionary, open_gemma_scope, read_object
from deltasae_ray.sae.layout import fields
from deltasae_ray.sae.made_for import BaseModel, check_model
from deltasae_ray.sae.metadata import check_metadata
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.names import BUILTIN, THIRDS

SHIPPED = Path(__file__).parent / "data"
"""Dictionaries that come with the package: a folder a model, as `deltasae reference` writes it."""
MAX_FVU = 0.6
"""A reference that leaves more of the base activations' variance unexplained was made for something else."""


@dataclass(frozen=True)
class Reference:
    """Where the dictionary of one layer is: a folder, or an id within a SAELens release."""

    layer: int
    folder: Path | None = None
    release: str = ""
    sae_id: str = ""
    model: str = ""
    """For which SAELens' directory says that the release was made; known before anything is downloaded."""

    def __str__(self) -> str:
        return str(self.folder) if self.folder else f"{self.release}/{self.sae_id}"


def resolve_references(
    source: str, layers: Iterable[int], ids: Mapping[int, str] | None = None
) -> dict[int, Reference]:
    """Finds the reference of every layer without loading or downloading any.

    Args:
        source: a folder with layer_XX/ below it; a pattern of folders, or `release/id`, with `{layer}` in it
            (split at the first slash); with `ids`, the name of a release; `builtin:NAME`, which is in the
            package.

    Raises:
        DictionaryError: a layer for which there is none, or more than one.
    """
    layers = list(layers)
    if ids is not None:
        if missing := [layer for layer in layers if layer not in ids]:
            raise DictionaryError(
                f"reference.ids names no dictionary for layers {missing}: it has {sorted(ids)}"
            )
        return _in_release(source, {layer: ids[layer] for layer in layers})
    if source.startswith(BUILTIN):
        source = str(_shipped_folder(source))
    if Path(source).is_dir():
        return {layer: Reference(layer, _layer_folder(Path(source), layer)) for layer in layers}
    if "{layer}" not in source:
        raise DictionaryError(
            f"reference={source!r} is no folder, and as release/id it needs {{layer}} where the layer's"
            " number goes"
        )
    folders = {layer: Path(source.replace("{layer}", str(layer))) for layer in layers}
    if source.startswith(("/", ".", "~")) or any(folder.is_dir() for folder in folders.values()):
        if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
            raise DictionaryError(f"reference={source!r}: there is no folder {missing}")
        return {layer: Reference(layer, folder) for layer, folder in folders.items()}
    release, _, pattern = source.partition("/")
    return _in_release(release, {layer: pattern.replace("{layer}", str(layer)) for layer in layers})


def load_reference(reference: Reference, base: BaseModel, made_for: str = "") -> Dictionary:
    """Opens a reference and checks that it was made for this model and place.

    Args:
        made_for: a model's name that is accepted in its metadata beside the base's own.

    Raises:
        DictionaryError: it cannot be opened, folded into raw units, or is of another model, hookpoint or
            model width.
    """
    check_model(reference, reference.model, base, made_for)
    dictionary = _open_folder(reference.folder) if reference.folder else _open_release(reference)
    check_model(reference, dictionary.meta.get("model"), base, made_for)
    if dictionary.d_model != base.d_model:
        raise DictionaryError(
            f"{reference} was made for d_model={dictionary.d_model}, but {base.label} has {base.d_model}"
        )
    place, wanted = dictionary.meta.get("hookpoint"), str(Hookpoint(reference.layer))
    if place is None and dictionary.meta.get("layer") not in (None, str(reference.layer)):
        raise DictionaryError(
            f"{reference} was made for layer {dictionary.meta['layer']}, but stands for layer"
            f" {reference.layer}: give the dictionary of that layer, or the layer that it was made for in"
            " layers=[…]"
        )
    if place is not None and place_of(place) != wanted:
        same = f" (which is {place_of(place)})" if place_of(place) != place else ""
        raise DictionaryError(
            f"{reference} was made for {place}{same}, but stands for {wanted}: a wrong hookpoint reconstructs"
            " nothing. Give the dictionary of that place, or the layer that it was made for in layers=[…]"
        )
    return dictionary


def check_reference(dictionary: Dictionary, h_base: Float[Tensor, "token d_model"] | np.ndarray) -> float:
    """FVU on base activations (position 0 left out), which shows any mistake that the files do not.

    Raises:
        DictionaryError: it exceeds MAX_FVU; the likely cause is named.
    """
    h = torch.as_tensor(h_base)
    # Centred on these rows: the mean that our own dictionaries carry may be of other text.
    mean = h.double().mean(dim=0).float()
    fvu = held_out(dictionary, h, mean)
    if fvu.fvu <= MAX_FVU:
        return fvu.fvu
    factor = (dictionary.d_model / float(h.square().sum(dim=1).mean())) ** 0.5
    scaled = held_out(dictionary, h * factor, mean * factor).fvu
    if scaled <= MAX_FVU:
        cause = (
            f"made for normalised activations (rows scaled by {factor:.3g} give {scaled:.2f}): use one with"
            " the scale folded in"
        )
    elif fvu.l0 > dictionary.d_sae / 10:
        cause = f"{fvu.l0:.0f} of {dictionary.d_sae} latents fire per token: a TopK or JumpReLU read as ReLU"
    else:
        cause = "another model, another layer or hookpoint, or activations normalised per token"
    raise DictionaryError(
        f"the reference leaves {fvu.fvu:.2f} of the variance of base activations (limit {MAX_FVU}); likely"
        f" {cause}"
    )


def _shipped_folder(source: str) -> Path:
    known = sorted(f"{BUILTIN}{p.name}" for p in SHIPPED.iterdir() if p.is_dir())
    if source not in known:
        raise DictionaryError(f"reference={source!r} does not come with the package; known: {known}")
    return SHIPPED / source.removeprefix(BUILTIN) / THIRDS[0]


def _layer_folder(root: Path, layer: int) -> Path:
    name = re.compile(rf"layer_0*{layer}(_.*)?")
    here = str(Hookpoint(layer))
    folders = sorted(
        p for p in root.iterdir() if p.is_dir() and (name.fullmatch(p.name) or place_of(p.name) == here)
    )
    if len(folders) != 1:
        raise DictionaryError(
            f"{root} has {len(folders)} folders for layer {layer} ({[p.name for p in folders]}): one"
            f" layer_{layer:02d}/ or layers.{layer}/ is needed, or a pattern with {{layer}} that ends at the"
            " dictionary's own folder"
        )
    return folders[0]


def release_ids(release: str) -> list[str]:
    """All dictionaries of a release that SAELens knows."""
    known = _sae_lens().loading.pretrained_saes_directory.get_pretrained_saes_directory()
    return list(known[release].saes_map)


def _in_release(release: str, ids: Mapping[int, str]) -> dict[int, Reference]:
    known = _sae_lens().loading.pretrained_saes_directory.get_pretrained_saes_directory()
    if release not in known:
        raise DictionaryError(f"SAELens knows no release {release!r}, and there is no such folder")
    if missing := [name for name in ids.values() if name not in known[release].saes_map]:
        some = sorted(known[release].saes_map)[:8]
        raise DictionaryError(
            f"release {release!r} has no {missing}: it has {some} and"
            f" {len(known[release].saes_map) - len(some)} more"
        )
    model = known[release].model or ""
    return {layer: Reference(layer, release=release, sae_id=name, model=model) for layer, name in ids.items()}


def _open_release(reference: Reference) -> Dictionary:
    release = _sae_lens().loading.pretrained_saes_directory.get_pretrained_saes_directory()[reference.release]
    if release.conversion_func == "gemma_3":
        return open_gemma_scope(_download(reference, release.repo_id, release.saes_map[reference.sae_id]))
    try:
        sae = _sae_lens().SAE.from_pretrained(
            reference.release, reference.sae_id, device="cpu", dtype="float32"
        )
    except Exception as e:  # SAELens, the hub's client and its network layers each raise their own
        raise DictionaryError(f"{reference} cannot be loaded: {e}") from e
    return _convert_sae(sae, str(reference))


def _download(reference: Reference, repository: str, path: str) -> Path:
    """A folder of Gemma Scope 2. SAELens asks the hub for shapes that are in the cache already, and so cannot
    open it without a network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with suppress(EntryNotFoundError):  # some repositories have none: the path says it all
            hf_hub_download(repository, f"{path}/config.json")
        return Path(hf_hub_download(repository, f"{path}/params.safetensors")).parent
    except Exception as e:  # the client and its network layers each raise their own
        raise DictionaryError(f"{reference} cannot be loaded: {e}") from e


def _open_folder(folder: Path) -> Dictionary:
    """Opens a folder of ours or SAELens' (before version 6 by its own reader), sparsify, dictionary_learning,
    or Gemma Scope 1 or 2."""
    try:
        if (folder / sparsify.WEIGHTS).exists():
            above = folder.parent / "config.json"
            run = read_object(above) if above.exists() else {}
            cfg, weights = sparsify.as_saelens(
                folder, read_object(folder / CFG), read_tensors(folder / sparsify.WEIGHTS)[0], run
            )
            return Dictionary(**fields(cfg, weights, str(folder / CFG)))
        if (folder / dictionary_learning.WEIGHTS).exists():
            weights = read_tensors(folder / dictionary_learning.WEIGHTS)[0]
            cfg, weights = dictionary_learning.as_saelens(
                folder, read_object(folder / "config.json"), weights
            )
            return Dictionary(**fields(cfg, weights, str(folder / "config.json")))
        if (folder / CFG).exists():
            return (
                Dictionary.load(folder)
                if "metadata" in (cfg := read_object(folder / CFG))
                else _before_version_6(folder, cfg)
            )
        return open_gemma_scope(folder)
    except (OSError, SafetensorError) as e:
        raise DictionaryError(f"{folder} cannot be opened: {e}") from e
    except DictionaryError as e:
        raise e if str(folder) in str(e) else DictionaryError(f"{folder}: {e}") from e


def _before_version_6(folder: Path, cfg: dict[str, Any]) -> Dictionary:
    check_metadata(cfg, str(folder / CFG))  # SAELens keeps only what it knows
    if not (folder / WEIGHTS).exists():
        raise no_dictionary(folder)
    try:
        sae = _sae_lens().SAE.load_from_disk(folder, device="cpu", dtype="float32")
    except DictionaryError:
        raise
    except Exception as e:  # whatever a damaged or unknown folder makes SAELens raise
        raise DictionaryError(f"{folder} cannot be loaded by SAELens: {type(e).__name__}: {e}") from e
    return _convert_sae(sae, str(folder / CFG))


def _convert_sae(sae: Any, name: str) -> Dictionary:
    return Dictionary(**fields(sae.cfg.to_dict(), sae.state_dict(), name))


def _sae_lens() -> Any:
    try:
        import sae_lens
        import sae_lens.loading.pretrained_saes_directory
    except ImportError as e:
        raise DictionaryError("this reference needs SAELens: install the extra deltasae-ray[saelens]") from e
    return sae_lens
