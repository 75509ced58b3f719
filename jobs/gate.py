"""Judges the adapters of a finished study by a policy, or verifies a folder of evidence."""

from deltasae_ray.gate.run import main

if __name__ == "__main__":
    main(__doc__)
