"""Freed memory stays with a process that asks for it, until it is asked for again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from deltasae_ray.runtime.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(8 << 20)  # 64 MB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_buffer_as_large_as_one_that_was_freed_costs_no_new_pages() -> None:
    def faults(how: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True
            ).stdout
        )

    assert faults("keep") < faults("plain") / 10
