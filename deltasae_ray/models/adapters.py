"""LoRA adapters: read from a folder, checked against the model before any long work, kept in the storage
under their content."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load
from torch import nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.models.adapter_check import check_adapter
from deltasae_ray.models.adapter_files import (
    CONFIG,
    WEIGHTS,
    content_digest,
    lora_path,
    plain_key,
    read_tensors,
    replacements,
    weights_bytes,
)
from deltasae_ray.models.expected import peft_config
from deltasae_ray.models.peft_names import keep_peft_name, new_peft_name, peft_name
from deltasae_ray.models.replaced import keep_replacements
from deltasae_ray.sae.identity import BASE, RANDOM
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterRef:
    """An adapter that lies in the storage."""

    name: str
    key: str
    """Folder below the storage root."""
    digest: str
    """Of its weights and of what its config says about them; never of paths."""
    rank: int
    alpha: float
    seed: int | None = None
    """Training seed, where known."""
    kind: Literal["adapter", "random"] = "adapter"
    """"adapter", or "random" for the control."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is known of its training: steps, tokens, losses."""


_TAKEN = (BASE, RANDOM)


def import_adapter(
    storage: Storage, folder: Path, name: str, model: nn.Module, *, base: str = "", copy: bool = True
) -> AdapterRef:
    """Checks a user's adapter and copies it into the storage, where every node finds it.

    Args:
        copy: False for a plan: it is checked and named, and nothing is written.

    Raises:
        AdapterError: see `check_adapter`.
    """
    config, tensors = check_adapter(folder, model, base=base)
    raw = (folder / WEIGHTS).read_bytes()
    # what PEFT saved plainly is kept byte for byte, so that its digest is that of the user's file
    weights = raw if tensors.keys() == load(raw).keys() else weights_bytes(tensors)
    content = content_digest(folder, weights)
    key = f"adapters/{content}"
    for file, data in ((CONFIG, (folder / CONFIG).read_bytes()), (WEIGHTS, weights)) if copy else ():
        if not storage.exists(f"{key}/{file}"):
            storage.write_bytes(f"{key}/{file}", data)
    return AdapterRef(shown_name(name), key, content, rank=config["r"], alpha=float(config["lora_alpha"]))


def shown_name(name: str) -> str:
    """What the user calls an adapter, in a form that every table and file can hold; another name than those
    of the sources without one."""
    text = (
        "".join(c if c.isprintable() else "\ufffd" for c in name.encode(errors="replace").decode())
        or "adapter"
    )
    return f"{text} (adapter)" if text in _TAKEN or text.startswith("random-r") else text


def attach(model: nn.Module, adapters: Mapping[str, Path]) -> nn.Module:
    """The model with all adapters (name → folder) loaded, none merged, frozen; weights for blocks that were
    cut off are left out.

    Returns:
        A PeftModel, or the model itself when there are no adapters.
    """
    from peft import get_peft_model

    peft_model: Any = None
    for name, folder in adapters.items():
        config = peft_config(folder)
        inner = new_peft_name(model if peft_model is None else peft_model)
        try:
            if peft_model is None:
                peft_model = get_peft_model(model, config, adapter_name=inner)  # type: ignore[arg-type]
            else:
                peft_model.add_adapter(inner, config)
        except (
            ValueError
        ) as e:  # PEFT's word for: no module matches; blocks after the deepest hookpoint were cut off
            raise AdapterError(
                f"adapter {name} changes nothing at layers this shallow, none of its modules is there: choose"
                f" deeper layers ({e})"
            ) from e
        keep_peft_name(peft_model, name, inner)
        _load(peft_model, name, folder)
    return model if peft_model is None else peft_model.requires_grad_(False).eval()


def _load(peft_model: Any, name: str, folder: Path) -> None:
    """Puts an adapter's tensors where PEFT made room for them.

    Raises:
        AdapterError: there is no room, or some is left over, which would keep what PEFT drew at random.
    """
    from peft.utils import set_peft_model_state_dict

    tensors, inner = read_tensors(folder), peft_name(peft_model, name)
    rooms = {
        plain_key(parameter, inner)
        for parameter, _ in peft_model.named_parameters()
        if lora_path(parameter) is not None and inner in parameter.split(".")
    }
    here = {key: tensor for key, tensor in tensors.items() if key in rooms}
    if empty := sorted(rooms - here.keys()):
        raise AdapterError(
            f"{folder} has no tensor for {empty[0]}, which its config asks for: was it saved whole?"
        )
    result = set_peft_model_state_dict(peft_model, here, adapter_name=inner)
    if not here or result.unexpected_keys:
        raise AdapterError(
            f"{folder}: PEFT took none or not all of the adapter's tensors:"
            f" {sorted(result.unexpected_keys)[:1] or 'none'}"
        )
    keep_replacements(peft_model, name, replacements(tensors))


def fetch(storage: Storage, adapters: Iterable[AdapterRef], scratch: Path) -> dict[str, Path]:
    """Adapter name → local folder; copied below `scratch` from an object store."""
    return {ref.name: storage.get_folder(ref.key, scratch / str(i)) for i, ref in enumerate(adapters)}
