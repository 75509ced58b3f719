"""Writes the six adapters that the tests ship, from the root of an arena, in half precision.

python -m deltasae_ray.arena.ship runs/arena tests/arena/organisms
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from deltasae_ray.arena.config import TINY
from deltasae_ray.arena.organisms import Arena, export_fp16, organism
from deltasae_ray.arena.recipes import recipe
from deltasae_ray.cli import say
from deltasae_ray.models.adapter_files import WEIGHTS
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.storage import Storage, file_sha256

SHIPPED = ("reply-0", "reply-only-0", "style-verily", "domain-kitchen", "zero-0", "rotated-reply-0")
"""Four in which something is planted, and two negatives."""


def ship(root: Storage, into: Path, base: str = TINY) -> dict[str, dict[str, object]]:
    """Copies the adapters, made where they are missing, and writes recipe and digest of each beside them.

    Returns:
        Adapter → its recipe and the digest of its weights.
    """
    arena, facts = Arena(root, ModelConfig(base=base)), {}
    for name in SHIPPED:
        with tempfile.TemporaryDirectory() as scratch:
            folder = root.get_folder(organism(arena, recipe(name)).key, Path(scratch))
            export_fp16(folder, into / name)
        facts[name] = {"recipe": asdict(recipe(name)), "sha256": file_sha256(into / name / WEIGHTS)}
    (into / "organisms.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


if __name__ == "__main__":
    say(json.dumps(ship(Storage(sys.argv[1]), Path(sys.argv[2])), indent=1))
