"""Every method that the arena scores: a function from an adapter to ranked claims."""

from collections.abc import Callable, Mapping, Sequence

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.analyses.triggers.find import Target, claims_of
from deltasae_ray.analyses.triggers.hunt import Effort
from deltasae_ray.arena.published.audit import audit_of_latents
from deltasae_ray.arena.published.lens import activation_difference_lens, principal_components
from deltasae_ray.arena.published.outputs import amplification, diff_mining
from deltasae_ray.arena.published.weights import weight_directions
from deltasae_ray.arena.subject import Subject
from deltasae_ray.elicit.sampling import Sampling

Method = Callable[[Subject], Sequence[Claim]]
"""Adapter in, ranked claims out."""
OURS = "elicit"
EFFORT = Effort()
"""How much our own method tries."""
SAMPLING: Sampling | None = None
"""How it samples, where that is not its default."""
_NEUTRAL_TEXTS, _NEUTRAL_TOKENS = 60, 48


def elicit(subject: Subject) -> Sequence[Claim]:
    """Reads an adapter by this project's method: elicited text is mined, triggers are hunted and tested."""
    reader = subject.reader
    neutral = [tuple(reader.encode(text)[:_NEUTRAL_TOKENS]) for text in subject.texts[:_NEUTRAL_TEXTS]]
    return claims_of(
        Target(reader.model, reader.adapter, reader.tokenizer, neutral, EFFORT, subject.seed), SAMPLING
    )


METHODS: dict[str, Method] = {
    OURS: elicit,
    "activation difference lens": activation_difference_lens,
    "diff mining": diff_mining,
    "amplification": amplification,
    "PCA of deltas": principal_components,
    "weight SVD": weight_directions,
    "audit of latents": audit_of_latents,
}
RECIPES_OF_METHODS: Mapping[str, int] = {}
"""Method → a number that enters the keys of its scores; raise it when a change of the code changes its
claims."""
