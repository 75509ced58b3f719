"""How many blocks a model has and how wide its residual stream is, whatever its config calls them."""

from pathlib import Path
from typing import Any

from deltasae_ray.errors import ModelError


def shape_of(folder: Path, raw: dict[str, Any], *, trust_remote_code: bool) -> tuple[int, int]:
    """(blocks, width) by transformers' own map of a family's words: GPT-Neo counts num_layers, MPT n_layers,
    GPT-2 n_layer.

    Args:
        raw: what config.json holds.

    Raises:
        ModelError: the config cannot be read, or names neither.
    """
    config = _config(folder, trust_remote_code=trust_remote_code)
    part = raw.get("text_config")
    text: dict[str, Any] = part if isinstance(part, dict) else raw

    def first(*names: str) -> Any:
        values = (getattr(config, names[0], None), *(text.get(name) for name in names))
        return next((value for value in values if value), None)

    layers, width = (
        first("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        first("hidden_size", "n_embd", "d_model"),
    )
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in (layers, width)):
        raise ModelError(
            f"{folder / 'config.json'} tells {layers!r} layers of width {width!r} (num_hidden_layers,"
            " hidden_size): is it the config of a causal language model?"
        )
    return layers, width


def _config(folder: Path, *, trust_remote_code: bool) -> Any:
    """The language model's config as transformers reads it; None where it needs code of its own that may not
    run, which loading tells."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        return config.get_text_config(decoder=True)
    except Exception as e:  # transformers raises dozens of types for a config that does not make sense
        if "trust_remote_code" in str(e):
            return None
        text = " ".join(str(e).split())[:300]
        raise ModelError(
            f"{folder / 'config.json'} cannot be read by transformers: {type(e).__name__}: {text}"
        ) from e
