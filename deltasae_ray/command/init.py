"""`deltasae init`: a commented configuration for a model and adapters, after looking at both."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasae_ray.errors import AdapterError, ConfigError, DeltaSaeError
from deltasae_ray.models.adapter_files import CONFIG, read_config
from deltasae_ray.models.base_files import read_object
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.hub import HubName, why_not_had
from deltasae_ray.models.source import ModelSource, resolve_model

USAGE = (
    "usage: deltasae init MODEL [ADAPTER …] [out=study.yaml]\n\nMODEL and ADAPTER are folders or hub ids.\n"
)
DEPTHS = (0.5, 0.65, 0.8)
"""Where the residual stream is read: past the middle, adapters have written most of what they write."""


def main(words: Sequence[str]) -> int:
    """Writes the file, never over one that is there; 2 where the model or an adapter cannot be read."""
    given = [word for word in words if not word.startswith("out=")]
    out = Path(next((word[4:] for word in words if word.startswith("out=")), "study.yaml"))
    if not given or {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE)
        return 0 if given else 2
    try:
        text = configuration(given[0], given[1:])
        with out.open("x") as file:
            file.write(text)
    except DeltaSaeError as e:
        sys.stderr.write(f"{type(e).__name__}: {e}\n")
        return 2
    except OSError as e:
        sys.stderr.write(f"{out} cannot be written ({e.strerror}): give another name, out=NAME.yaml\n")
        return 2
    sys.stdout.write(f"Wrote {out}. Look through it, then: deltasae sweep config={out} dry_run=true\n")
    return 0


def configuration(base: str, adapters: Sequence[str]) -> str:
    """The YAML of a study.

    Raises:
        ConfigError, ModelError, AdapterError: the model or an adapter cannot be read, or was made for a model
            of another width.
    """
    model = resolve_model(ModelConfig(base=base), weights=False)
    seen = [_look(place) for place in adapters]
    layers = sorted({min(model.num_layers - 1, round(depth * model.num_layers)) for depth in DEPTHS})
    if unreached := [a for a in seen if a.first > layers[0]]:
        raise ConfigError(
            f"{unreached[0].place} adapts no block before {unreached[0].first}, so its deltas are zero at"
            f" layer {layers[0]}: write the file for another model, or set layers in it by hand"
        )
    return _text(model, base, seen, layers)


@dataclass(frozen=True)
class Adapter:
    """What an adapter's config says of it."""

    place: str
    rank: int
    first: int
    """The first block that it may change."""
    targets: tuple[str, ...]
    made_for: str


def _look(place: str) -> Adapter:
    folder = Path(place)
    if not folder.is_dir():
        try:
            folder = HubName.of(place).fetch([CONFIG])
        except Exception as e:  # the hub client raises dozens of types
            raise AdapterError(f"adapter {place!r} {why_not_had(place, e)}") from e
    config = read_config(folder, weights=False)
    blocks = config.get("layers_to_transform")
    first = min(blocks) if isinstance(blocks, list) and blocks else blocks if isinstance(blocks, int) else 0
    targets = config.get("target_modules") or ()
    return Adapter(
        os.path.abspath(folder) if Path(place).is_dir() else place,
        int(config["r"]),
        first,
        tuple(sorted(targets)) if isinstance(targets, (list, set)) else (str(targets),),
        str(config.get("base_model_name_or_path") or "a model that its config does not name"),
    )


def _text(model: ModelSource, base: str, adapters: Sequence[Adapter], layers: Sequence[int]) -> str:
    place = os.path.abspath(base) if Path(base).is_dir() else base
    lines = [
        f"# {model.num_layers} blocks of width {model.d_model} ({model.kind}).",
        f"model: {{base: {_quoted(place)}}}",
        "",
        *_adapter_lines(adapters),
        "corpus:",
        "  # The text that the adapters were trained on, or are to be: JSONL, Parquet, plain text, a folder.",
        "  # Replace it: builtin:shakespeare is a sample.",
        '  path: ["builtin:shakespeare"]',
        "  # Text that they were not trained on: what changes here too is no matter of style.",
        '  unrelated: ["builtin:kjv", "builtin:pydoc"]',
        *_chat_lines(model),
        "  # Tokens of a context: as long as the texts, as short as memory asks.",
        "  context_len: 128",
        "",
        "# Blocks after which the residual stream is read, from 0: past the middle, and two later ones.",
        f"layers: {list(layers)}",
        "",
        "# auto takes the dictionaries' size from what the deltas need. Two seeds give intervals over seeds.",
        "fit: {d_sae: auto, seeds: 2}",
        "",
        "# base fits a toy reference here. Better: a dictionary that was made for the base model, such as",
        "# a folder with layer_XX/, or release/id-with-{layer} as SAELens names them.",
        "reference: {source: base}",
        "",
        "# Everything is written below it, and found again by the same command.",
        f"storage: {{root: runs/{Path(place).name}}}",
    ]
    return "\n".join(lines) + "\n"


def _adapter_lines(adapters: Sequence[Adapter]) -> list[str]:
    if not adapters:
        return ["# No adapters were given: one of each rank is trained.", "adapt: {ranks: [4, 16]}", ""]
    parts = [
        f"#   {Path(a.place).name}: rank {a.rank}, {', '.join(a.targets)}; made for {a.made_for}"
        for a in adapters
    ]
    return [
        "# LoRA adapters under study:",
        *parts,
        f"adapters: [{', '.join(_quoted(a.place) for a in adapters)}]",
        "",
    ]


def _chat_lines(model: ModelSource) -> list[str]:
    tokenizer: dict[str, Any] = {}
    if (file := model.folder / "tokenizer_config.json").is_file():
        tokenizer = read_object(file)
    has = bool(tokenizer.get("chat_template")) or (model.folder / "chat_template.jinja").is_file()
    return (
        ["  # chat reads conversations by the tokenizer's template and masks prompts.", "  # format: chat"]
        if has
        else []
    )


def _quoted(text: str) -> str:
    """A YAML text, whatever is in it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
