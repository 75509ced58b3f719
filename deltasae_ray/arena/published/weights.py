"""A published reading of weights: the leading singular vectors of the change."""

import torch

from deltasae_ray.analyses.lens.model import logit_lens
from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.arena.subject import WORDS, Subject
from deltasae_ray.models.adapter_files import read_config, read_tensors

_WRITERS = ("o_proj", "down_proj")
"""Modules that write to the residual stream."""
_LISTED = 10


@torch.no_grad()
def weight_directions(subject: Subject) -> list[Claim]:
    """Left singular vectors of the change of every module that writes to the residual stream, by singular
    value, read by the logit lens (weights as monitors, 2508.00161).

    Of both signs the one that the lens reads more plainly is listed.
    """
    tensors, config = read_tensors(subject.files), read_config(subject.files)
    scale = float(config["lora_alpha"]) / float(config["r"])
    directions: list[tuple[float, torch.Tensor, str]] = []
    for name, a in tensors.items():
        if ".lora_A." not in name or not any(f".{w}." in name for w in _WRITERS):
            continue
        b = tensors[name.replace(".lora_A.", ".lora_B.")]
        left, values, _ = torch.linalg.svd(scale * b.float() @ a.float(), full_matrices=False)
        directions += [(float(v), left[:, i], name) for i, v in enumerate(values[: a.shape[0]])]
    directions.sort(key=lambda direction: -direction[0])
    claims = []
    for value, direction, name in directions[:_LISTED]:
        both = logit_lens(subject.reader.model, torch.stack([direction, -direction]), WORDS)
        lens = max(both, key=lambda one: one.peak)
        claims.append(subject.stated("weights", lens.promoted, value, module=name))
    return claims
