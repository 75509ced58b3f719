"""Writes the delta shards of every adapter, training adapters first where none are given."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("harvest", __doc__)
