"""Copies a reference into the package in half precision: `python -m tests.ship_reference ROOT/reference gemma3-270m`.

Statistics and biases stay fp32: massive coordinates are beyond the precision of fp16, and their energies beyond its
range. The card goes along as it is.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deltasae_ray.sae.dictionary import CFG, STATISTICS, WEIGHTS
from deltasae_ray.sae.names import THIRDS
from deltasae_ray.sae.saelens import SHIPPED


def ship(made: Path, name: str) -> Path:
    """Writes the dictionaries of a finished `deltasae reference` below the package's data."""
    target = SHIPPED / name
    for folder in (p.parent for third in THIRDS for p in sorted((made / third).glob(f"*/{CFG}"))):
        to = target / folder.relative_to(made)
        to.mkdir(parents=True, exist_ok=True)
        weights = load_file(folder / WEIGHTS)
        weights |= {name: weights[name].to(torch.float16) for name in ("W_enc", "W_dec")}
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise SystemExit(f"{folder}: weights beyond the range of fp16")
        save_file(weights, to / WEIGHTS)
        shutil.copy(folder / STATISTICS, to / STATISTICS)
        cfg = json.loads((folder / CFG).read_text())
        (to / CFG).write_text(json.dumps({**cfg, "dtype": "float16"}, indent=1))
    shutil.copy(made / "README.md", target / "README.md")
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{ship(Path(sys.argv[1]), sys.argv[2])}\n")
