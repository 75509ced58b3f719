"""Files of weights: what is wrong with one is told from its head, before anything is loaded."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from deltasae_ray.errors import DeltaSaeError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs"


def check_weights(path: Path, error: type[DeltaSaeError]) -> None:
    """Checks that a safetensors file is whole, from its header and its size.

    Raises:
        error: it is absent, empty, a Git LFS pointer, cut off or no safetensors file; the text names file,
            cause and remedy.
    """
    refuse_pointer(path, error)
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError, ValueError) as e:
        size = path.stat().st_size
        raise error(
            f"{path} ({size:,} bytes) is no whole safetensors file ({e}): its download or copy was cut off, "
            "or it was written by something "
            "else. Fetch it again and compare its size with the original's"
        ) from e


def refuse_pointer(path: Path, error: type[DeltaSaeError]) -> None:
    """Refuses a file that cannot be read, is empty, or is the pointer that Git LFS leaves in place of a file.

    Raises:
        error: names file, cause and remedy.
    """
    try:
        with path.open("rb") as f:
            head = f.read(len(_LFS))
    except OSError as e:
        raise error(f"{path} cannot be read: {e.strerror or e}. Copy or download it again") from e
    if not head:
        raise error(f"{path} is empty (0 bytes): its download or copy failed. Fetch it again")
    if head == _LFS:
        raise error(
            f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in its repository, or"
            " download the file"
        )


def base_weights(folder: Path, error: type[DeltaSaeError]) -> list[Path]:
    """The weights that transformers reads from a model's folder; none where there are none, as for a plan.

    Raises:
        error: a file that the index names is not there or leads out of the folder, or the index is no index.
    """
    index, single = folder / INDEX, folder / WEIGHTS
    names = _indexed(index, error) if index.is_file() else []
    if single.is_file():  # as transformers chooses
        return [single]
    return [folder / name for name in names]  # the hub's cache holds symlinks to its blobs


def _indexed(index: Path, error: type[DeltaSaeError]) -> list[str]:
    """The files that an index of weights names. Only those beside it enter the model's digest, so no other is
    accepted."""
    refuse_pointer(index, error)
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, OSError) as e:
        raise error(f"{index} is no index of weights ({type(e).__name__}: {e}): fetch it again") from e
    for name in names:
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise error(
                f"{index} names {name!r}, which is no safetensors file in its folder: weights are not read"
                " from elsewhere. Put the file there, or save the model with save_pretrained again"
            )
    return sorted(names)
