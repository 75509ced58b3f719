"""On the path of every process that tests start: each loads thousands of modules, and Python's garbage
collector, which looks through them again and again and finds nothing, took a seventh of the suite's time on
the processors."""

import gc

gc.set_threshold(100_000, 50, 50)
