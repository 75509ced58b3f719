"""`deltasae arena`: methods that say what an adapter learnt, scored on adapters of known truth."""

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs the arena; see `deltasae arena --help`."""
    from deltasae_ray.arena import main as arena

    arena.main(words)
    return 0
