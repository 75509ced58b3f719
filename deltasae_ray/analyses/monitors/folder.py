"""Monitors as folders: monitor.yaml with probe.safetensors, or with a SAELens dictionary and chosen latents;
texts.jsonl with labels may lie beside. Nothing is unpickled."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltasae_ray import yaml_core
from deltasae_ray.analyses.monitors.monitor import READINGS, Monitor, Reading, Repair
from deltasae_ray.errors import DictionaryError, HookpointError, MonitorError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import CFG, WEIGHTS, Dictionary

YAML, PROBE, REPAIR, TEXTS = "monitor.yaml", "probe.safetensors", "repair.safetensors", "texts.jsonl"
FILES = (YAML, PROBE, CFG, WEIGHTS, REPAIR, TEXTS)
"""All files that a monitor's folder may have; others are left aside."""
_KEYS = ("hookpoint", "reads", "threshold", "latents")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt", ".npy")
_PROBE = {"weight": 1, "mean": 1, "scale": 1, "bias": 0, "threshold": 0}
MOST_TEXTS = 2_000
"""Labelled texts of a monitor; more cost passes and narrow no interval that matters."""


@dataclass(frozen=True)
class LabelledText:
    """A text that is, or is not, what the monitor looks for."""

    text: str
    label: bool


def read_monitor(folder: Path, name: str = "") -> Monitor:
    """Opens a monitor.

    Args:
        name: what it is called; the folder's name where nothing is given.

    Raises:
        MonitorError: a file is missing, is a pickle or malformed, or holds NaN; names the file and the field.
    """
    name = name or folder.resolve().name
    if not _NAME.fullmatch(name):
        raise MonitorError(
            f"monitor {str(folder)!r}: a monitor is called by its folder, whose name must be 1 to 64 letters,"
            " digits, dashes and underscores: rename it"
        )
    hookpoint, reads, threshold, latents = _yaml(folder)
    repair = _repair(folder) if (folder / REPAIR).is_file() else None
    if (folder / PROBE).is_file() == (folder / CFG).is_file():
        raise MonitorError(_neither(folder))
    if (folder / PROBE).is_file():
        if latents:
            raise MonitorError(f"{folder / YAML}: latents go with a dictionary ({CFG}), not with {PROBE}")
        weight, bias, metadata = _probe(folder / PROBE)
        threshold = metadata if threshold is None else threshold
        return Monitor(name, hookpoint, reads, weight, bias, threshold, repair=repair)
    return Monitor(
        name,
        hookpoint,
        reads,
        threshold=threshold,
        dictionary=_dictionary(folder, hookpoint, latents),
        latents=latents,
        repair=repair,
    )


def _neither(folder: Path) -> str:
    if (folder / PROBE).is_file():
        return f"{folder} holds both {PROBE} and {CFG}: a monitor is a probe or a dictionary; take one out"
    pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in _PICKLES]
    if pickles:
        return (
            f"{folder} holds {pickles[0]} and no {PROBE}: pickles run code as they are opened and are not"
            f" read. Save weight and bias with safetensors.torch.save_file as {PROBE}"
        )
    return f"{folder} holds neither {PROBE} nor a SAELens dictionary ({CFG}, {WEIGHTS})"


def _yaml(folder: Path) -> tuple[Hookpoint, Reading, float | None, tuple[int, ...]]:
    path = folder / YAML
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise MonitorError(f"{path} cannot be read ({e}): a monitor's folder needs it") from e
    loaded = yaml_core.load(text, str(path))
    if not isinstance(loaded, dict) or set(loaded) - set(_KEYS):
        raise MonitorError(f"{path} must be a mapping with the keys {', '.join(_KEYS)} and no others")
    reads: Reading | None = next((r for r in READINGS if r == loaded.get("reads")), None)
    if reads is None:
        raise MonitorError(f"{path}: reads={loaded.get('reads')!r} must be one of {', '.join(READINGS)}")
    place, latents = loaded.get("hookpoint"), loaded.get("latents", [])
    if not isinstance(place, str):
        raise MonitorError(f"{path}: hookpoint must be a layer number or a name")
    try:
        hookpoint = Hookpoint.parse(place)
    except HookpointError as e:
        raise MonitorError(f"{path}: {e}") from e
    if not isinstance(latents, list) or not all(
        isinstance(i, str) and re.fullmatch(r"[0-9]{1,9}", i) for i in latents
    ):
        raise MonitorError(f"{path}: latents must be a list of numbers from 0 up")
    return hookpoint, reads, _number(loaded, path), tuple(dict.fromkeys(int(str(i)) for i in latents))


def _number(loaded: dict, path: Path) -> float | None:
    if loaded.get("threshold") is None:
        return None
    try:
        number = float(loaded["threshold"])
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < 1e30:
        raise MonitorError(f"{path}: threshold={loaded['threshold']!r} must be a finite number")
    return number


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise MonitorError(
            f"{path} is no safetensors file ({e}); pickles are not read: save it with"
            " safetensors.torch.save_file"
        ) from e
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise MonitorError(f"{path}: {name} holds NaN or infinity, or is no floating point")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _probe(path: Path) -> tuple[Tensor, float, float | None]:
    """Weight and bias in raw units, and the threshold."""
    tensors = {name: t.squeeze() for name, t in _tensors(path).items()}
    if "weight" not in tensors or set(tensors) - set(_PROBE):
        raise MonitorError(
            f"{path} holds {sorted(tensors)}: weight is needed, and only {', '.join(_PROBE)} may be there"
        )
    weight = tensors["weight"]
    for name, tensor in tensors.items():
        wanted = weight.shape if _PROBE[name] else torch.Size([])
        if weight.ndim != 1 or tensor.shape != wanted:
            raise MonitorError(
                f"{path}: {name} has shape {tuple(tensor.shape)}; weight must be [d_model] or [1, d_model],"
                " mean and scale as long, bias and threshold one number"
            )
    scale = tensors.get("scale", torch.ones_like(weight))
    if (scale <= 0).any():
        raise MonitorError(f"{path}: scale must be above 0 everywhere: activations are divided by it")
    if not weight.any():
        raise MonitorError(f"{path}: weight is zero everywhere: the probe says the same of every text")
    raw = weight / scale
    bias = float(tensors.get("bias", torch.tensor(0.0))) - float(raw @ tensors.get("mean", 0 * weight))
    threshold = float(tensors["threshold"]) if "threshold" in tensors else None
    return raw, bias, threshold


def _repair(folder: Path) -> Repair:
    tensors = _tensors(folder / REPAIR)
    if set(tensors) != {"matrix", "offset"} or tensors["matrix"].shape != 2 * tensors["offset"].shape:
        raise MonitorError(f"{folder / REPAIR} must hold matrix [d_model, d_model] and offset [d_model]")
    return Repair(tensors["matrix"], tensors["offset"])


def _dictionary(folder: Path, hookpoint: Hookpoint, latents: tuple[int, ...]) -> Dictionary:
    try:
        dictionary = Dictionary.load(folder)
    except DictionaryError as e:
        raise MonitorError(f"{folder}: {e}") from e
    if not latents:
        raise MonitorError(
            f"{folder / YAML}: latents names those of the dictionary that are read, as [3, 17]"
        )
    if wrong := [i for i in latents if i >= dictionary.d_sae]:
        raise MonitorError(f"{folder / YAML}: there is no latent {wrong[0]}; there are {dictionary.d_sae}")
    made_for = dictionary.meta.get("hookpoint")
    if made_for and made_for != str(hookpoint):
        raise MonitorError(f"{folder}: the dictionary was made for {made_for}, and {YAML} says {hookpoint}")
    return dictionary


def read_texts(path: Path) -> tuple[LabelledText, ...]:
    """The labelled texts of a monitor, one JSON object a line: text, and label 0 or 1 (or false, true).

    Raises:
        MonitorError: names the line; or one of the labels is missing.
    """
    texts: list[LabelledText] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise MonitorError(f"{path} cannot be read: {e}") from e
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, label = row["text"], row["label"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise MonitorError(f"{path}, line {number} is no object with text and label ({e!r})") from e
        if not isinstance(text, str) or not text.strip() or label not in (0, 1):
            raise MonitorError(f"{path}, line {number}: text must be a text, and label 0 or 1")
        texts.append(LabelledText(text, bool(label)))
    if len(texts) > MOST_TEXTS:
        raise MonitorError(f"{path} has {len(texts):,} texts, and {MOST_TEXTS:,} is the most: take a sample")
    if len({one.label for one in texts}) < 2:
        raise MonitorError(f"{path} must hold texts of both labels, 0 and 1")
    return tuple(texts)


def write_monitor(monitor: Monitor, folder: Path) -> None:
    """Writes a folder that `read_monitor` opens to the same scores."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"hookpoint": str(monitor.hookpoint), "reads": monitor.reads}
    metadata |= {} if monitor.threshold is None else {"threshold": monitor.threshold}
    metadata |= {"latents": list(monitor.latents)} if monitor.latents else {}
    if monitor.weight is not None:
        save_file({"weight": monitor.weight.contiguous(), "bias": torch.tensor(monitor.bias)}, folder / PROBE)
    else:
        assert monitor.dictionary is not None
        monitor.dictionary.save(folder)
    if monitor.repair is not None:
        parts = {"matrix": monitor.repair.matrix, "offset": monitor.repair.offset}
        save_file({name: part.contiguous() for name, part in parts.items()}, folder / REPAIR)
    (folder / YAML).write_text(yaml.safe_dump(metadata, sort_keys=False))
