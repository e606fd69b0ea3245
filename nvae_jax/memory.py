"""How much memory there is, and how this process asks the system for it.

Imports nothing that allocates much.
"""

import ctypes
import mmap
import os
from pathlib import Path

_HUGE_PAGE = 2**21  # bytes; where they are larger, a part of one at the ends stays ordinary


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, in huge pages, where that can be asked for.

    XLA's CPU backend allocates its temporaries anew at every step; by default the system takes the
    pages back in between and must clear them again: a cell's gradient was 1.5 times slower so. In
    pages of 4 KiB, most of what the arrays of a step touch is not in the processor's table of
    addresses. It must come before anything starts a thread, because threads that are there have
    pools of their own, which hand large blocks back whatever is set here: so before NumPy and JAX
    are imported.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never; a large number would not do after a large compilation
    mallopt(arena_max, 1)
    _ask_for_huge_pages(libc)


def machine_memory() -> float:
    """Bytes of this machine's memory that its processes may use: of a container, if it is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups, version 2 and 1
        try:
            memory = min(memory, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):
            continue
    return float(memory)


def usable_memory() -> float:
    """Bytes that this process can come to: what it has, and what others have left.

    Where the system does not say, all of the machine's.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        (left,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError):
        return machine_memory()
    return min(machine_memory(), left + float(pages * os.sysconf("SC_PAGE_SIZE")))


def give_back_freed_memory() -> None:
    """Hands the memory that this process has freed back to the system, once."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # not glibc


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Advises the system so for addresses that malloc hands out later; occupies no memory."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.free.argtypes = (ctypes.c_void_p,)
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    block = libc.malloc(size)
    if not block:
        return  # a limit on addresses
    first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    # An error means a system without them.
    libc.madvise(first, block + size - first, mmap.MADV_HUGEPAGE)
    libc.free(block)  # kept, since nothing is trimmed
