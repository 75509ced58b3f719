"""The audit of the study, as it stands: latents of a dictionary of deltas by energy × reproducibility."""

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.audit.figures import AuditInputs, audit
from deltasae_ray.analyses.lens.model import logit_lens
from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.arena.subject import WORDS, Subject
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.models.capture import deltas
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.identity import BASE
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer

_RECIPE = Recipe(d_sae=256, k=8, steps=300, batch_tokens=512)
_LISTED = 10


def audit_of_latents(subject: Subject) -> list[Claim]:
    """The mean change, then latents by energy × reproducibility over two seeds, read by the logit lens; where
    the deltas are zero nothing is claimed."""
    hook, reader = subject.middle, subject.reader
    of_adapter = dict(deltas(reader.model, subject.rows(128, 32), [hook], [reader.adapter]))
    rows = {name: taken[hook][:, 1:].flatten(0, 1) for name, taken in of_adapter.items()}
    delta, base = rows[reader.adapter], rows[BASE]
    cut = len(delta) * 3 // 4
    if not bool(delta.any()):
        return []
    own, other = (_fitted(delta[:cut], seed) for seed in (0, 1))
    moments = Moments.of(delta[:cut])
    inputs = AuditInputs(
        own, _fitted(base[:cut], 0), (other,), moments, Moments.of(base[:cut]).spectrum, delta[cut:].numpy()
    )
    order = [row.latent for row in audit(inputs, Settings(seed=subject.seed)).leading(_LISTED - 1)]
    directions = [moments.mean.float() if latent is None else own.W_dec[latent] for latent in order]
    lenses = logit_lens(reader.model, torch.stack(directions), WORDS)
    return [
        subject.stated("text", lens.promoted, lens.peak, latent=latent)
        for latent, lens in zip(order, lenses, strict=True)
    ]


def _fitted(rows: Float[Tensor, "token d_model"], seed: int) -> Dictionary:
    trainer = Trainer(rows, _RECIPE, seed)
    while not trainer.done:
        trainer.step()
    return trainer.finish()
