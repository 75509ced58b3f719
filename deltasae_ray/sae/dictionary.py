"""A sparse dictionary in raw units: z = σ((x − b_dec) · W_enc + b_enc), x̂ = z · W_dec + b_dec.

A saved folder is SAELens' own layout (cfg.json, sae_weights.safetensors), so its tools open it, plus one file
of what was measured of each latent. Only JSON and safetensors are read: a dictionary from elsewhere cannot
run code.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltasae_ray.errors import DictionaryError
from deltasae_ray.paths import local_folder
from deltasae_ray.sae import layout
from deltasae_ray.sae.layout import ARCHITECTURES

CFG, WEIGHTS, STATISTICS = "cfg.json", "sae_weights.safetensors", "deltasae_statistics.safetensors"


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Shapes as SAELens has them. Decoder rows are unit vectors, but for a TopK of others that selects
    without their norms."""

    W_enc: Float[Tensor, "d_model d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_model"]
    architecture: str
    """One of ARCHITECTURES."""
    k: int
    """Active latents per token (topk); 0 where the architecture does not fix it."""
    firing: Float[Tensor, " d_sae"]
    """Share of the training tokens on which each latent fires; all 1 where that is not known."""
    energy: Float[Tensor, " d_sae"]
    """E[z²] on the training tokens, in squared raw units; all 1 where that is not known."""
    meta: dict = field(default_factory=dict)
    """JSON-like: hookpoint, model, what it was fitted on, learning curve."""
    threshold: Float[Tensor, " d_sae"] | None = None
    """jumprelu: a latent fires above it."""
    mean: Float[Tensor, " d_model"] | None = None
    """Mean of the training rows, where it is known: what FVU is centred on."""

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.architecture not in ARCHITECTURES:
            raise DictionaryError(
                f"architecture {self.architecture!r} with W_enc {tuple(self.W_enc.shape)}: known are"
                f" {list(ARCHITECTURES)}"
            )
        d_model, d_sae = self.W_enc.shape
        shapes = {
            "W_dec": (d_sae, d_model),
            "b_enc": (d_sae,),
            "b_dec": (d_model,),
            "firing": (d_sae,),
            "energy": (d_sae,),
        }
        shapes |= {"threshold": (d_sae,)} if self.threshold is not None else {}
        shapes |= {"mean": (d_model,)} if self.mean is not None else {}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise DictionaryError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, which does not fit W_enc {d_model}"
                    f" x {d_sae}"
                )
        for name in ("W_enc", *shapes):
            if not torch.isfinite(getattr(self, name)).all():
                raise DictionaryError(f"{name} holds NaN or infinity")
        if self.architecture == "topk" and not 1 <= self.k <= d_sae:
            raise DictionaryError(f"k={self.k} must be in 1..{d_sae}, the number of latents")
        if (self.architecture == "jumprelu") != (self.threshold is not None):
            raise DictionaryError(
                f"architecture {self.architecture!r}: a threshold belongs to jumprelu and to nothing else"
            )

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def alive(self) -> Bool[Tensor, " d_sae"]:
        """Latents that fire on some training token. Dead ones belong in no geometry."""
        return self.firing > 0

    @property
    def rows(self) -> int:
        """Training tokens, of a stream those of all its windows; 0 where that is not known."""
        return int(self.meta.get("rows", 0))

    def encode(self, x: Float[Tensor, "token d_model"] | np.ndarray) -> Float[Tensor, "token d_sae"]:
        """Codes of raw activations, dense.

        Raises:
            DictionaryError: rows of another width.
        """
        x = torch.as_tensor(x, dtype=torch.float32, device=self.W_enc.device)
        if x.shape[-1] != self.d_model:
            raise DictionaryError(
                f"rows of {x.shape[-1]} numbers, but this dictionary was made for d_model={self.d_model}"
            )
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        if self.architecture == "topk":
            values, indices = pre.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter_(-1, indices, values.relu_())
        codes = pre.relu()
        return codes if self.threshold is None else codes * (pre > self.threshold)

    def decode(self, z: Float[Tensor, "token d_sae"] | np.ndarray) -> Float[Tensor, "token d_model"]:
        """Reconstructions of raw activations."""
        return torch.as_tensor(z, dtype=torch.float32, device=self.W_dec.device) @ self.W_dec + self.b_dec

    def passes(
        self, x: Float[Tensor, "token d_model"] | np.ndarray
    ) -> Iterator[tuple[Float[Tensor, "rows d_model"], Float[Tensor, "rows d_sae"]]]:
        """(rows, codes) in blocks of at most 64 M codes, for statistics over more tokens than memory holds
        codes of."""
        for rows in torch.as_tensor(x).split(max(1, 2**26 // self.d_sae)):
            rows = rows.to(self.W_enc.device, torch.float32)
            yield rows, self.encode(rows)

    def measured(self, x: Float[Tensor, "token d_model"] | np.ndarray) -> "Dictionary":
        """Measures firing and energy anew on x, such as those of a pretrained dictionary on base
        activations."""
        fired = torch.zeros(self.d_sae, dtype=torch.float64, device=self.W_enc.device)
        energy = torch.zeros_like(fired)
        for _, z in self.passes(x):
            fired += (z > 0).sum(dim=0)
            energy += z.square().sum(dim=0, dtype=torch.float64)
        return dataclasses.replace(self, firing=(fired / len(x)).float(), energy=(energy / len(x)).float())

    def save(self, folder: str | Path) -> Path:
        """Writes a folder that `load` and SAELens' `SAE.load_from_disk` open; cfg.json comes last."""
        folder = local_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        statistics = {"firing": self.firing, "energy": self.energy} | (
            {} if self.mean is None else {"mean": self.mean}
        )
        weights = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
        weights |= {} if self.threshold is None else {"threshold": self.threshold}
        copies = {
            n: t.detach().cpu().clone() for n, t in statistics.items()
        }  # safetensors takes no two that share memory
        save_file(copies, folder / STATISTICS, {"meta": json.dumps(self.meta)})
        save_file({n: t.detach().cpu().contiguous() for n, t in weights.items()}, folder / WEIGHTS)
        (folder / CFG).write_text(
            json.dumps(layout.cfg(self.architecture, self.d_model, self.d_sae, self.k, self.meta), indent=1)
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Dictionary":
        """Opens a folder that `save` or SAELens 6 wrote.

        Raises:
            DictionaryError: a file that is missing or damaged, or weights that do not fit the configuration
                or each other.
        """
        folder = local_folder(folder)
        try:
            cfg = json.loads((folder / CFG).read_text())
            weights, _ = read_tensors(folder / WEIGHTS)
            statistics, header = (
                read_tensors(folder / STATISTICS) if (folder / STATISTICS).exists() else ({}, {})
            )
            meta = dict(json.loads(header.get("meta", "{}")))
        except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as e:
            raise DictionaryError(f"{folder} cannot be opened as a dictionary: {e}") from e
        known = {
            name: statistics[name].float() for name in ("firing", "energy", "mean") if name in statistics
        }
        try:
            loaded = cls(**layout.fields(cfg, weights, str(folder / CFG)))
            return dataclasses.replace(loaded, meta={**loaded.meta, **layout.kept(meta)}, **known)
        except DictionaryError as e:
            raise DictionaryError(f"{folder}: {e}") from e


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its header's own texts.

    Raises:
        DictionaryError: it is not there, is damaged, or holds a type that torch does not have.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            # Copies: tensors of a mapped file die with it, and saving into the folder one has loaded from is
            # a natural thing to do.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  it is no dict
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as e:
        raise DictionaryError(f"{path} cannot be read as safetensors: {e}") from e
