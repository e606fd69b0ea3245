"""How this process asks the system for memory; imports nothing that allocates much."""

import ctypes


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, where the C library is glibc.

    XLA's CPU backend allocates its temporaries anew at every step; by default the system takes the
    pages back in between and must clear them again: a cell's gradient was 1.5 times slower so. It
    must come before anything starts a thread, because threads that are there have pools of their
    own, which hand large blocks back whatever is set here: so before NumPy and JAX are imported.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never; a large number would not do after a large compilation
    mallopt(arena_max, 1)
