"""Compares every fitted dictionary with the reference and writes the tables and the report."""

from deltasae_ray.study.main import main

if __name__ == "__main__":
    main("diverge", __doc__)
