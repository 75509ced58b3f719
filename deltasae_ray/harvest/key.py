"""What a harvest is of: tokens, model and numerics, as its key and its record."""

from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.harvest.config import HarvestConfig
from deltasae_ray.models.source import ModelSource
from deltasae_ray.storage import digest

_ON_DISK = "float16 with a per-row power-of-two exponent on disk"
NUMERICS = {
    "fp32": f"fp32 weights, residual stream and subtraction; {_ON_DISK}",
    "mixed": (
        f"bf16 products by difference propagation, fp32 weights, residual stream and subtraction; {_ON_DISK}"
    ),
}
"""What enters a harvest's key, by `harvest.precision`; `numerics` says how weights are held."""


def numerics(precision: str, model: ModelSource) -> str:
    """How numbers come about, in words."""
    return NUMERICS[precision].replace(
        "fp32 weights,", "fp32 weights," if model.weights == "fp32" else "bf16 weights, fp32"
    )


def harvest_key(corpus: Corpus, model: ModelSource, precision: str = "fp32") -> str:
    """A digest of the tokens, the model and the numerics; adapters and hookpoints are sources and columns
    within."""
    made_of = {"corpus": corpus.key, "model": model.digest, "numerics": numerics(precision, model)}
    return f"harvest/{digest(made_of)}"


def harvest_record(model: ModelSource, corpus: Corpus, cfg: HarvestConfig) -> dict:
    tokens = {
        split: {name: corpus.num_tokens(split, name) for name in corpus.names} for split in ("fit", "eval")
    }
    return {
        "d_model": model.d_model,
        "model": model.label,
        "model_digest": model.digest,
        "num_layers": model.num_layers,
        "numerics": numerics(cfg.precision, model),
        "corpus": corpus.key,
        "tokens": tokens,
    }
