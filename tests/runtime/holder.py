"""A driver that holds a root until it is ended: `python -m tests.runtime.holder ROOT`."""

import sys
import time

from deltasae_ray.runtime.lease import lease
from deltasae_ray.storage import Storage

if __name__ == "__main__":
    with lease(Storage(sys.argv[1]), "jobs/sweep.py"):
        sys.stdout.write("holds\n")
        sys.stdout.flush()
        time.sleep(600)
