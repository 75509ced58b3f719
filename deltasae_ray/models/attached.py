"""The base model with its adapters attached, as a worker on any node loads it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from deltasae_ray.errors import ModelError
from deltasae_ray.models.adapters import AdapterRef, attach, fetch
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import backbone, load_model, load_tokenizer
from deltasae_ray.models.source import ModelSource, resolve_model
from deltasae_ray.models.zero3 import run_sharded, sharded_loading
from deltasae_ray.storage import Storage


def model_meant(cfg: ModelConfig, digest: str | None) -> ModelSource:
    """The model as this node has it.

    Args:
        digest: of the model that is meant; None takes whichever is found here.

    Raises:
        ModelError: this node has another model under the same name.
    """
    source = resolve_model(cfg)
    if digest is not None and source.digest != digest:
        raise ModelError(
            f"model.base={cfg.base!r} has other weights on this node than on the driver's: copy one model to"
            " all nodes"
        )
    return source


def tokenizer_meant(cfg: ModelConfig, digest: str | None) -> Any:
    """The tokenizer of the model as this node has it.

    Raises:
        ModelError: this node has another model under the same name.
    """
    return load_tokenizer(model_meant(cfg, digest).folder, trust_remote_code=cfg.trust_remote_code)


def load_with_adapters(  # noqa: PLR0913 - three of them are choices with defaults
    storage: Storage,
    cfg: ModelConfig,
    adapters: tuple[AdapterRef, ...],
    device: str,
    *,
    deepest: int | None,
    digest: str | None = None,
    root: Callable[[nn.Module], nn.Module] = backbone,
) -> nn.Module:
    """The base model with adapters attached, sharded over the gang if `cfg` says so.

    Args:
        deepest: last block that is kept; None keeps all blocks.
        digest: of the model that is meant; None takes whichever is found here.
        root: the module that forward passes go through: the backbone, or `base_of` where the language-model
            head is needed too.

    Raises:
        ModelError: this node has another model under the same name.
    """
    source = model_meant(cfg, digest)

    def load() -> nn.Module:
        weights = cfg.weights if cfg.sharding == "none" else "fp32"
        model = load_model(
            source.folder,
            deepest=deepest,
            weights=weights,
            trust_remote_code=cfg.trust_remote_code,
            device=device,
        )
        return attach(model, folders)

    with tempfile.TemporaryDirectory() as scratch:
        folders = fetch(storage, adapters, Path(scratch))
        if cfg.sharding == "none":
            return load().to(device)
        with sharded_loading(cfg, source.folder, device):  # DoRA reads the base's weights as it is attached
            model = load()
        return run_sharded(model, cfg, source.folder, device, root)
