"""Compares dictionaries with the reference and writes the report: `deltasae diverge`."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("diverge")
