"""A driver that holds a root until it is ended: `python -m tests.sweep.holder ROOT`."""

import sys
import time

from deltasae_ray.storage import Storage
from deltasae_ray.sweep.lease import lease

if __name__ == "__main__":
    with lease(Storage(sys.argv[1]), "jobs/sweep.py"):
        sys.stdout.write("holds\n")
        sys.stdout.flush()
        time.sleep(600)
