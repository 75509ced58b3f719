"""How dictionaries are fitted."""

import math
from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import expanded
from deltasae_ray.sae.names import AUTO_FLOOR, Architecture

CPUS_PER_WORKER = 0.5
"""CPUs that a fit worker asks Ray for. Torch uses the node's cores divided by the workers that it may hold at
once."""
MAX_FAILURES = 3
"""Times a killed fit worker, or a trial, is started again from its last checkpoint."""


@dataclass(frozen=True)
class FitConfig:
    """The sweep's grid is adapters × d_sae × k × architecture; seeds and layers share one read of the
    shards."""

    d_sae: tuple[int, ...] | Literal["auto"] = (256, 512)
    """Dictionary sizes, in latents. auto: the next power of two above 8 times the largest effective rank of
    the deltas, at least 256."""
    k: tuple[int, ...] = (8,)
    """Active latents per token: of each (topk), on average (batchtopk, matryoshka_batchtopk), or aimed at
    (jumprelu, standard)."""
    architecture: tuple[Architecture, ...] = ("topk",)
    """By SAELens' name. topk is the default: batchtopk, its threshold frozen for single tokens, fires more on
    held-out text, leaves more latents dead and recovers no more planted atoms (docs/benchmarks.md). It and
    matryoshka_batchtopk are saved with that threshold, as jumprelu."""
    seeds: int = 1
    """Dictionaries per point of the grid; two or more give a ceiling and a share of latents that repeat."""
    lr: float = 3e-3
    """Peak learning rate of Adam for up to 1024 latents; above, it falls with the square root of d_sae."""
    batch_tokens: int = 1024
    """Tokens per step."""
    steps: int = 1500
    """Optimizer steps per dictionary."""
    auxk: float = 1 / 32
    """Weight of the loss by which dead latents learn what the living ones leave over; 0 turns it off."""
    l1: float = 0.0
    """standard only: fixed weight of the L1 penalty in the convention of mean-reduced losses (the paper:
    0.15); 0 adjusts it to reach k."""
    workers: int = 1
    """Ray Train workers."""
    layout: Literal["layer_parallel", "ddp"] = "layer_parallel"
    """Workers take different layers, or all take their share of every batch of one dictionary, for sizes that
    keep one worker too long: such dictionaries train one after the other, where layer_parallel stacks small
    ones of one shape."""
    gpus_per_worker: float = 0.0
    """GPUs that a fit worker asks Ray for."""
    search: Literal["none", "asha", "optuna"] = "none"
    """Before a trial and its controls are fitted, search its learning rate (within a factor of 4 of fit.lr)
    and AuxK weight (0 to 1/8) on FVU of a fifth of the training documents, which candidates are not fitted
    to: many samples of which ASHA stops the worse half early, or ones that Optuna proposes. Sizes, k and
    architectures are what is studied and are never searched (FVU always falls with k). Base and random
    adapter keep fit.lr and fit.auxk."""
    search_samples: int = 8
    """Settings tried per trial."""
    max_concurrent_trials: int = 0
    """Trials that run at once; Tune does not see the workers inside them. 0: what the nodes have room for
    when fitting starts."""

    def __post_init__(self) -> None:
        for field in ("d_sae", "k", "architecture"):
            values = getattr(self, field)
            if values == "auto":
                continue
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"fit.{field}={list(values)} must name at least one value, none twice")
        if max(self.k) > min(self.sizes):
            raise ConfigError(
                f"fit.k={max(self.k)} exceeds fit.d_sae={min(self.sizes)}: lower k or raise d_sae"
            )
        if min(self.k) < 1 or min(self.sizes) < 2:
            raise ConfigError("fit.k must be at least 1 and fit.d_sae at least 2")
        for field in ("seeds", "batch_tokens", "steps", "workers", "search_samples"):
            if getattr(self, field) < 1:
                raise ConfigError(f"fit.{field}={getattr(self, field)} must be at least 1")
        if self.max_concurrent_trials < 0:
            raise ConfigError(
                f"fit.max_concurrent_trials={self.max_concurrent_trials} must be at least 1, or 0 for what"
                " the cluster holds"
            )
        if not (0 < self.lr < math.inf and 0 <= self.auxk < math.inf and 0 <= self.l1 < math.inf):
            raise ConfigError(
                f"fit.lr={self.lr} must be above 0, fit.auxk={self.auxk} and fit.l1={self.l1} at least 0"
            )
        if self.layout == "ddp" and self.workers > self.batch_tokens:
            raise ConfigError(
                f"fit.workers={self.workers} exceeds fit.batch_tokens={self.batch_tokens}: some would have no"
                " tokens"
            )

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints (weights, optimizer, firing counters, reader position, random state): at
        least four in a fit."""
        return min(500, max(1, self.steps // 4))

    @property
    def at_once(self) -> int:
        """Trials that share the machines; 1 until `max_concurrent_trials=0` is resolved."""
        return max(1, self.max_concurrent_trials)

    @property
    def sizes(self) -> tuple[int, ...]:
        """`d_sae` in latents; before the harvest, what is at least known of `auto`."""
        return (AUTO_FLOOR,) if self.d_sae == "auto" else self.d_sae


@dataclass(frozen=True)
class ReferenceConfig:
    """The pretrained dictionary that deltas are held against."""

    source: str = "base"
    """`base` fits a small reference on base activations; else a folder with layer_XX/ (SAELens, sparsify and
    others), a SAELens release/id-with-{layer}, or `builtin:gemma3-270m` (three layers of that model)."""
    ids: dict[int, str] | None = None
    """SAELens ids layer by layer, where they do not follow one pattern; `source` then names the release."""
    made_for: str = ""
    """Model whose dictionaries are accepted beside the base's own: what the base was tuned from, where its
    name is another."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", expanded(self.source, "reference.source"))
        if self.ids is not None and (not self.ids or not all(name.strip() for name in self.ids.values())):
            raise ConfigError(
                f"reference.ids={self.ids} must name a dictionary for every layer in it: {{5: id, 10: id}},"
                " or be left out"
            )

    @property
    def is_toy(self) -> bool:
        """Whether the reference is fitted here, on the study's own base activations."""
        return self.source == "base"
