"""Trains LoRA adapters, or checks the given ones: `deltasae adapt`."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("adapt")
