"""Scores methods on adapters of known truth: `deltasae arena`. Without words, the 64 tiny ones."""

from pathlib import Path

from deltasae_ray.arena.main import main

TINY = Path(__file__).parent / "configs" / "arena.yaml"

if __name__ == "__main__":
    main(without_words=[f"config={TINY}"])
