"""Writes the delta shards of every adapter: `deltasae harvest`."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("harvest")
