"""Fits every dictionary in one pass over the shards: `deltasae fit`."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("fit")
