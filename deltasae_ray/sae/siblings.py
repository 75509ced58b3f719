"""Other dictionaries of a reference's release, for the same layer: what a latent scores that the release has.

Releases hold one dictionary for each width and L0, which their paths name, as in
`layer_12/width_16k/average_l0_82` or `layer_12_width_16k_l0_medium`. `deltasae reference` makes one
for each third of its documents, as in `1of3/layer_12`.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from deltasae_ray.sae.dictionary import CFG
from deltasae_ray.sae.names import THIRDS
from deltasae_ray.sae.saelens import Reference, release_ids

MOST, FEWEST = 3, 2
"""Siblings that are taken, and fewer than which say nothing: what repeats between them is not known."""
WIDER = 2.0
"""Times the reference's width up to which a sibling is taken."""
_WIDTH, _L0 = re.compile(r"width_(\d+)(k|m)"), re.compile(r"l0_(\d+|small|medium|big|large)")
_FILES = (CFG, "config.json", "params.npz", "params.safetensors")


def siblings(reference: Reference) -> list[Reference]:
    """Finds dictionaries of the same release and layer of another width or L0, the nearest in width first,
    or of other documents; none where they are fewer than FEWEST.

    Nothing is loaded or downloaded. A folder's siblings lie beside it, or beside the folder above it.
    """
    near = _in_release(reference) if reference.folder is None else _beside(reference, reference.folder)
    return near if len(near) >= FEWEST else []


def _in_release(reference: Reference) -> list[Reference]:
    named = _nearest(reference.sae_id, release_ids(reference.release))
    return [replace(reference, sae_id=name) for name in named]


def _beside(reference: Reference, folder: Path) -> list[Reference]:
    folder = folder.resolve()
    if folder.parent.name in THIRDS:
        others = (folder.parents[1] / third / folder.name for third in THIRDS if third != folder.parent.name)
        return [replace(reference, folder=other) for other in others if (other / CFG).is_file()]
    up = 2 if _WIDTH.search(folder.parent.name) else 1
    root = folder.parents[up - 1]
    places = (p for p in root.glob("/".join(["*"] * up)) if any((p / file).is_file() for file in _FILES))
    named = _nearest(str(folder.relative_to(root)), (str(p.relative_to(root)) for p in places))
    return [replace(reference, folder=root / Path(name)) for name in named]


def _nearest(own: str, names: Iterable[str]) -> list[str]:
    """Names that differ from a reference's in width or L0 alone."""
    like, width = _bare(own), _width(own)
    if width is None and not _L0.search(own):
        return []

    def far(name: str) -> tuple[float, str]:
        return abs(math.log((_width(name) or 1) / (width or 1))), name

    siblings = [
        n for n in names if n != own and _bare(n) == like and (_width(n) or 1) <= WIDER * (width or 1)
    ]
    return sorted(siblings, key=far)[:MOST]


def _bare(name: str) -> str:
    return _L0.sub("l0", _WIDTH.sub("width", name))


def _width(name: str) -> float | None:
    match = _WIDTH.search(name)
    return None if match is None else float(match[1]) * (1e3 if match[2] == "k" else 1e6)
