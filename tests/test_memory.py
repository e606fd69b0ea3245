"""Memory: what a process gives back to the system, and in which pages it has its arrays."""

import pathlib
import re
import subprocess
import sys

import pytest

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

ARRAY = 64  # MiB
PROGRAM = f"""
import sys
if sys.argv[1] == "kept":
    from nvae_jax.memory import keep_freed_memory
    keep_freed_memory()
import pathlib, re
import numpy as np

def show():
    text = pathlib.Path("/proc/self/smaps_rollup").read_text()
    print(*(int(re.search(rf"^{{name}}: +(\\d+) kB", text, re.M)[1]) // 1024
            for name in ("Rss", "AnonHugePages")))

show()
array = np.ones({ARRAY} * 2**18, np.float32)
show()
del array
show()
"""


def resident(which):
    """MiB in memory and in huge pages: before, with and after an array."""
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, check=True
    ).stdout
    return [tuple(map(int, line.split())) for line in out.splitlines()]


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="not Linux")
def test_freed_memory_stays_and_is_in_huge_pages():
    (before, _), (holding, huge), (after, huge_after) = resident("kept")
    assert holding >= before + ARRAY - 4
    assert after >= holding - 4
    assert huge_after == huge
    if re.search(r"\[(always|madvise)\]", HUGE_PAGES.read_text()):
        assert huge >= ARRAY - 4


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="not Linux")
def test_freed_memory_goes_back_by_default():
    """Without it the test above would say nothing."""
    (before, _), (holding, _), (after, _) = resident("default")
    assert holding >= before + ARRAY - 4
    assert after <= before + 4
