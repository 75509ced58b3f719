"""How much an adapter is made to write, and how far triggers are looked for in it."""

from dataclasses import dataclass

from deltasae_ray.errors import ConfigError


@dataclass(frozen=True)
class ElicitConfig:
    """Text that adapted models write by themselves, with their difference to the base amplified; what they
    learnt is read from it."""

    samples: int = 0
    """Texts for each of some six neutral openings and each of three strengths of the amplification, such as
    8; as many are sampled from the base and from the random adapter. 0: nothing is sampled and no trigger is
    hunted. Off by default: the hunt's error rate is not established yet (docs/triggers.md)."""
    length: int = 32
    """Tokens of each text at most."""
    scan: int = 1024
    """Tokens of the vocabulary that the hunt puts into a context, those of the sampled and the neutral text
    first; the others are left out."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ConfigError(f"elicit.samples={self.samples} must not be negative; 0 samples nothing")
        for field, least in (("length", 4), ("scan", 16)):
            if getattr(self, field) < least:
                raise ConfigError(f"elicit.{field}={getattr(self, field)} must be at least {least}")
