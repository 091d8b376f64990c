"""How many places the C library's allocator keeps memory in, once threads have used it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ARENAS = """
import ctypes, re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from infrastructure.allocator import share_one_arena
if sys.argv[2] == "one":
    share_one_arena()
together = Barrier(8)

def allocate(_):
    together.wait()
    return [bytes(10_000) for _ in range(1_000)]

with ThreadPoolExecutor(8) as threads:
    kept = list(threads.map(allocate, range(8)))
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(len(re.findall("<heap nr=", Path(sys.argv[1]).read_text())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc is meant")
@pytest.mark.parametrize(("asked", "one"), [("one", True), ("many", False)])
def test_all_threads_share_one_arena_once_that_was_asked_for(
    tmp_path: Path, asked: str, one: bool
) -> None:
    command = [sys.executable, "-c", ARENAS, str(tmp_path / "info.xml"), asked]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (int(said) == 1) is one
