"""Runs the whole study: `deltasae sweep`."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("sweep")
