"""Copies of base parameters that PEFT saves beside an adapter: where they equal the base's, they are no
change."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from deltasae_ray.errors import ModelError
from deltasae_ray.models.adapter_files import base_name, lora_path
from deltasae_ray.models.weight_files import base_weights, check_weights


def without_copies(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """An adapter's tensors but for those that stand in place of a base parameter and hold its very values.

    Args:
        model: knows the folder that it was made from; where that holds no weights, as for a plan of a hub
            model, nothing is left out.
    """
    copies = {key for key in tensors if lora_path(key) is None}
    folder = Path(str(getattr(getattr(model, "config", None), "_name_or_path", "") or ""))
    if not copies or not (folder / "config.json").is_file():
        return dict(tensors)
    stored = _Stored(folder)
    return {
        key: t
        for key, t in tensors.items()
        if key not in copies or not _equals(t, stored.candidates(base_name(key), model))
    }


def _equals(copy: torch.Tensor, candidates: Iterator[torch.Tensor]) -> bool:
    # a copy in a narrower type is the base's values rounded, not trained ones
    return any(c.shape == copy.shape and torch.equal(c.to(copy.dtype), copy) for c in candidates)


class _Stored:
    """The tensors of a base's safetensors, looked up by the ends of their names: checkpoints prefix them in
    several ways."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in base_weights(folder, ModelError):
            check_weights(path, ModelError)
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def candidates(self, name: str, model: nn.Module) -> Iterator[torch.Tensor]:
        """What may be the parameter; a head that is tied to the embedding is stored as that."""
        for known in (name, *_tied(name, model)):
            for key in self._files:
                if key == known or key.endswith(f".{known}") or known.endswith(f".{key}"):
                    with safe_open(self._files[key], framework="pt") as file:
                        yield file.get_tensor(key)


def _tied(name: str, model: Any) -> list[str]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    ends = {
        id(e.weight)
        for e in (model.get_input_embeddings(), model.get_output_embeddings())
        if hasattr(e, "weight")
    }
    if not tied or id(parameters.get(name)) not in ends:
        return []
    return [other for other, parameter in parameters.items() if id(parameter) in ends and other != name]
