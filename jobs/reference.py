"""Fits a reference for a base model, from text: `deltasae reference`."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("reference")
