"""A file to many machines at once, beside what one link takes for it, and beside all of them
pulling it from the source.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from bench.land import make_file
from bench.measuring import MEGABYTE, workplace
from bench.namespaces import Network
from bench.report import Report, begin
from streams.server import find_binary
from streams.values import DataEntry

SIZE_MB, BIG_SIZE_MB = 50, 200
MBPS, BIG_MBPS = 100.0, 200.0
NODES = 8
ROUNDS, BIG_ROUNDS = 1, 5
#: A link carries so much more than the bytes of a file: headers of TCP, IP and Ethernet.
_HEADERS = 1.045


def run(size_mb: int, nodes: int, mbps: float, rounds: int, seed: int, base: Path | None) -> Report:
    """Spread a file `rounds` times each way."""
    report = begin("broadcast", seed, size_mb=size_mb, nodes=nodes, mbps=mbps, rounds=rounds)
    names = ["source", *(f"node-{number + 1}" for number in range(nodes))]
    with workplace(base) as place, Network(names, mbps) as network, ExitStack() as stack:
        machines = _Machines(network, names, place, stack)
        size = size_mb * MEGABYTE // (1 << 20) * (1 << 20)
        limit_s = size * 8 / (mbps * 1e6)
        for way in ("p2p", "pull"):
            # That the source sends one copy after the other needs no second time.
            turns = rounds if way == "p2p" else 1
            found = [machines.spread(way, size, seed + number) for number in range(turns)]
            what = "peer to peer" if way == "p2p" else "all pull from the source"
            took = [spread.seconds / limit_s for spread in found]
            report.add(f"{what}: until the last has it", took, "x size/bandwidth")
            came = [spread.fetched_s / limit_s for spread in found]
            report.add("  of it: until all bytes are there", came, "x size/bandwidth")
            copies = [spread.sent_bytes / size for spread in found]
            report.add(f"{what}: what the source sent", copies, "copies")
            report.add("  CPU of the receivers together", [one.cpu_s for one in found], "s")
    report.notes.append(
        f"Each link is {mbps:g} Mbit/s each way; headers alone make {_HEADERS} x of size/bandwidth "
        "the bound, and are counted in what the source sent. The last has it when its digest is "
        "proven and the file is on its disk."
    )
    return report


class Spread(msgspec.Struct):
    """A file that came to all machines."""

    #: Until the last one has it, proven and on its disk; and until the last one has all bytes.
    seconds: float
    fetched_s: float
    #: By the source, with headers.
    sent_bytes: int
    cpu_s: float


class _Machines:
    """The processes of one network."""

    def __init__(self, network: Network, names: list[str], place: Path, stack: ExitStack) -> None:
        self._network = network
        self._names = names
        self._place = place
        bus = f"nats://{network.address('bus')}:4222"
        server = [str(find_binary()), "-a", network.address("bus"), "-p", "4222"]
        self._start(stack, "bus", server)
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for name in names:
            (place / name).mkdir()
            words = ["-m", "bench.receiver", name, network.address(name), bus, str(place / name)]
            self._processes[name] = self._start(stack, name, [sys.executable, *words])
        self._urls = {name: self._answer(name)["url"] for name in names}

    def spread(self, way: str, size: int, seed: int) -> Spread:
        """Bring a new file to all machines."""
        file = self._place / "file.bin"
        entry = make_file(file, size >> 20, seed)
        entry = msgspec.structs.replace(entry, path=f"models/{way}-{seed}.bin")
        self._tell("source", entry, file=str(file))
        self._answer("source")
        before, began = self._network.sent_bytes("source"), time.perf_counter()
        targets = self._names[1:]
        for name in targets:
            self._tell(name, entry, way=way, nodes=self._urls)
        answers = [self._answer(name) for name in targets]
        took = time.perf_counter() - began
        for name in targets:
            (self._place / name / entry.path).unlink()
        return Spread(
            seconds=took,
            fetched_s=max(answer["fetched_s"] for answer in answers),
            sent_bytes=self._network.sent_bytes("source") - before,
            cpu_s=sum(answer["cpu_s"] for answer in answers),
        )

    def _start(self, stack: ExitStack, name: str, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._network.inside(name, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name == "bus" else None,
            text=True,
        )
        stack.callback(_end, process)
        return process

    def _tell(self, name: str, entry: DataEntry, **more: Any) -> None:
        pipe = self._processes[name].stdin
        assert pipe is not None
        pipe.write(json.dumps({"entry": msgspec.to_builtins(entry), **more}) + "\n")
        pipe.flush()

    def _answer(self, name: str) -> dict[str, Any]:
        pipe = self._processes[name].stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            raise RuntimeError(f"{name} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
