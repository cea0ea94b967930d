"""How things are measured: memory and CPU of a process of its own, and directories for them.

Each step runs in a fresh process, so that one's memory and caches are not another's.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

P = ParamSpec("P")
T = TypeVar("T")
MEGABYTE = 1_000_000


class Usage(msgspec.Struct):
    """What a stretch of work took."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    #: The most memory its process ever held, as the kernel counts it.
    peak_bytes: int = 0
    #: Seconds of stretches within it.
    parts: dict[str, float] = {}


@contextmanager
def usage() -> Iterator[Usage]:
    """Measures the block; what it yields is filled in at its end."""
    gc.collect()
    found = Usage()
    cpu, started = _cpu_s(), time.perf_counter()
    yield found
    found.seconds = time.perf_counter() - started
    found.cpu_s = _cpu_s() - cpu
    found.peak_bytes = peak_bytes()


def peak_bytes() -> int:
    """The most memory this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # the other way counts what the parent held when it forked
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def commands(*given: list[str]) -> Usage:
    """Run programs one after the other; what they took together, as their kernel counts it."""
    found, started = Usage(), time.perf_counter()
    for command in given:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"{command[0]} ended with status {child.returncode}")
        found.cpu_s += used.ru_utime + used.ru_stime
        found.peak_bytes = max(found.peak_bytes, used.ru_maxrss * 1024)
    found.seconds = time.perf_counter() - started
    return found


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """A new process that calls one function after the other, with nothing inherited."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def in_process(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a new process of its own, and wait for what it returns."""
    with process() as pool:
        return pool.submit(work, *args, **kwargs).result()


@contextmanager
def workplace(base: Path | None) -> Iterator[Path]:
    """An empty directory below `base`, or where the system keeps such; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name:
        yield Path(name)


def settle(file: Path, size_bytes: int) -> None:
    """Leave nothing to be written, and so much memory warm, whoever was measured before.

    What one has left to the disk is not the next one's to wait for: only whoever flushes would. A
    virtual machine gives free memory back to its host within seconds, and to touch it again costs
    ten times as much. `file` is made and removed.
    """
    os.sync()
    block = bytes(MEGABYTE // 4)
    with file.open("wb", buffering=0) as out:
        for _ in range(size_bytes // len(block)):
            out.write(block)
    file.unlink()


def emptied(directory: Path, among: Path) -> None:
    """Put a directory aside, its files without their bytes, for whoever removes all in the end.

    To remove them now would make the next ones dear: a file system without a journal, as this may
    be, looks at every file that was removed within minutes before it begins another.
    """
    among.mkdir(exist_ok=True)
    moved = directory.rename(among / uuid.uuid4().hex)
    for above, _, names in os.walk(moved):
        for name in names:
            os.truncate(Path(above) / name, 0)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
