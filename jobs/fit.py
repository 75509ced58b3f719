"""Fits every dictionary of the study in one pass over the shards, without Tune."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("fit", __doc__)
