"""Trains LoRA adapters at adapt.ranks, or checks and imports the given ones."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("adapt", __doc__)
