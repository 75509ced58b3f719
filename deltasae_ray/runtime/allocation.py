"""What large buffers cost: a process that computes keeps the memory it has freed, and the kernel need not
find it new pages each time."""

import ctypes

KEPT = 1 << 30
"""Bytes of freed memory that stay with the process, and the size from which a buffer is mapped by itself and
given back at once."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """From now on this process keeps up to `KEPT` bytes that it frees. For processes that do nothing but
    compute, never for a user's own.

    glibc maps every buffer above 32 MB (the activations of a few thousand tokens) by itself and gives it back
    when it is freed, so each one costs a fault for every 4 KB: a fifth to a quarter of a forward pass on a
    CPU. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, KEPT)
