"""The arena: adapters of known truth are trained, methods say what they learnt, and one scorer reads the
claims. Without words it runs the tiny one."""

from pathlib import Path

from deltasae_ray.arena.main import main

TINY = Path(__file__).parent / "configs" / "arena.yaml"

if __name__ == "__main__":
    main(__doc__, without_words=[f"config={TINY}"])
