"""Each adapted module's own change s·B·A·u, in low-rank coordinates: what its A gives in a forward pass,
scaled. Nothing is subtracted.

In a model where one adapted module alone writes straight to the residual stream, its change is the delta;
wherever a norm or another adapted module stands before that, it is not (`load.has_post_norm`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deltasae_ray.errors import AdapterError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapter_files import PREFIX, read_config, read_tensors
from deltasae_ray.models.capture import adapter_on
from deltasae_ray.models.load import backbone, base_of, blocks
from deltasae_ray.models.peft_names import adapters_of, peft_name


@dataclass(frozen=True)
class ModuleDelta:
    """The change s·B·A·u that one adapted linear module makes to its own output, in low-rank coordinates."""

    coordinates: Float[Tensor, "context position rank"]
    """s·A·u, u the module's input in the adapted pass."""
    writer: Float[Tensor, "out rank"]
    """B: the change is coordinates @ writer.T."""

    @property
    def change(self) -> Float[Tensor, "context position out"]:
        return self.coordinates @ self.writer.T


@torch.no_grad()
def module_deltas(
    model: nn.Module, input_ids: Int[Tensor, "context position"], adapter: str
) -> dict[str, ModuleDelta]:
    """The local change of every linear module that a plain LoRA adapter adapts, by the module's name in the
    base model.

    Args:
        model: as `peft.PeftModel.from_pretrained` gives it, whole on its device; its parameters' precision is
            that of the coordinates. The pass is made in evaluation mode, without dropout; afterwards the
            model's modes, active adapters and gradients are as before.

    Raises:
        AdapterError: the model has no such adapter, adapters are merged into its weights, or this one adapts
            no linear module by plain LoRA (DoRA scales the base's weights too, a bias beside B is no
            product).
    """
    known = peft_name(model, adapter)
    if known not in getattr(model, "peft_config", {}):
        raise AdapterError(f"the model has no adapter {adapter!r}: it has {adapters_of(model)}")
    modules: list[tuple[str, Any]] = list(base_of(model).named_modules())
    layers = {
        name: layer
        for name, layer in modules
        if known in getattr(layer, "lora_A", {})
        and known not in getattr(layer, "lora_variant", {})
        and not layer.lora_bias.get(known)
    }
    if not layers:
        raise AdapterError(
            f"adapter {adapter!r} adapts no linear module by plain LoRA: its change has no low-rank"
            " coordinates"
        )
    if merged := sorted(
        {str(name) for module in model.modules() for name in getattr(module, "merged_adapters", ())}
    ):
        raise AdapterError(
            f"adapters {merged} are merged into the model's weights, which hides their changes: call"
            " model.unmerge_adapter() first"
        )
    with ExitStack() as exits:
        exits.enter_context(
            torch.random.fork_rng(devices=_cuda_devices(model))
        )  # a model's own code may draw
        taken = exits.enter_context(
            _reading({(adapter, name): layer for name, layer in layers.items()}, {adapter: known})
        )
        exits.enter_context(adapter_on(model, adapter))
        backbone(model)(input_ids=input_ids, use_cache=False)
    if not taken:
        raise AdapterError(
            f"adapter {adapter!r}: none of the modules that it adapts ran, such as {next(iter(layers))}"
        )
    return {
        name: ModuleDelta(inputs_taken, layers[name].lora_B[known].weight.to(inputs_taken.dtype, copy=True))
        for (_, name), inputs_taken in taken.items()
    }


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def lora_writers(folder: Path, model: nn.Module) -> dict[Hookpoint, Float[Tensor, "out rank"]]:
    """B of every linear module in the blocks that a plain LoRA adapter adapts, in fp32 on the CPU; none where
    the change is more than s·B·A·u (DoRA, a bias beside B).

    Args:
        folder: of an adapter that was checked (`adapters.check_adapter`).
        model: the base, of which names alone are used: one without weights will do.
    """
    config = read_config(folder)
    if config.get("use_dora") or config.get("lora_bias"):
        return {}
    index = {id(block): layer for layer, block in enumerate(blocks(model))}
    names = {
        f"{name}.": index[id(module)]
        for name, module in base_of(model).named_modules()
        if id(module) in index
    }
    writers = {}
    for key, tensor in read_tensors(folder).items():
        path = key.removeprefix(PREFIX).removesuffix(".lora_B.weight")
        for name, layer in names.items():
            if key.endswith(".lora_B.weight") and path.startswith(name):
                writers[Hookpoint(layer, "lora", path.removeprefix(name))] = tensor.float().contiguous()
    return {hookpoint: writers[hookpoint] for hookpoint in sorted(writers)}


@contextmanager
def reading_coordinates(
    model: nn.Module, hookpoints: Mapping[str, Sequence[Hookpoint]]
) -> Iterator[dict[tuple[str, Hookpoint], Float[Tensor, "context position rank"]]]:
    """Inside, every forward pass leaves s·A·u in the yielded dict, by adapter and hookpoint, of each adapter
    that takes part in it, be it alone or beside the base and others in one batch.

    Args:
        hookpoints: adapter → its hookpoints of the site `lora` (`lora_writers`).
    """
    stack = blocks(model)
    layers = {
        (a, h): stack[h.layer].get_submodule(h.module) for a, hooks in hookpoints.items() for h in hooks
    }
    with _reading(layers, {a: peft_name(model, a) for a in hookpoints}) as taken:
        yield taken


@contextmanager
def _reading(layers: Mapping[Any, Any], names: Mapping[str, str]) -> Iterator[dict[Any, Tensor]]:
    """Collects the low-rank coordinates of LoRA layers, by (adapter, a name), while the body runs.

    Args:
        names: what PEFT calls the adapters.
    """
    taken: dict[Any, Tensor] = {}

    def reader(key: tuple[str, Any], scaling: float):
        def read(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            taken[key] = output.detach() * scaling

        return read

    handles = []
    try:
        for key, layer in layers.items():
            name = names[key[0]]
            handles.append(layer.lora_A[name].register_forward_hook(reader(key, layer.scaling[name])))
        yield taken
    finally:
        for handle in handles:
            handle.remove()
