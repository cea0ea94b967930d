"""Machines made of network namespaces, each behind a link of a given rate each way. Needs root.

Nothing outside of them is touched: they hang on a bridge in a namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_NET = "10.66.0"
_BURST = "256k"
_LATENCY = "50ms"


class Network:
    """As ``with``: `names` are machines at a rate each way; "bus" is one without a limit."""

    def __init__(self, names: list[str], mbps: float) -> None:
        self.names = ["bus", *names]
        self._mbps = mbps
        self._prefix = f"dp{os.getpid()}"

    def __enter__(self) -> Self:
        demand("ip", "tc")
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def address(self, name: str) -> str:
        """Where a machine is reached by the others."""
        return f"{_NET}.{self.names.index(name) + 1}"

    def inside(self, name: str, command: list[str]) -> list[str]:
        """A command as it runs on a machine."""
        return ["ip", "netns", "exec", self._space(name), *command]

    def sent_bytes(self, name: str) -> int:
        """All that a machine has sent, with headers."""
        command = self.inside(name, ["cat", "/sys/class/net/eth0/statistics/tx_bytes"])
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def _make(self) -> None:
        hub = self._space("hub")
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        for name in self.names:
            space, port = self._space(name), f"p{self.names.index(name)}"
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "eth0", "netns", space)
            _ip("-n", hub, "link", "set", port, "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            if name != "bus":
                self._limit(space, "eth0")
                self._limit(hub, port)

    def _limit(self, space: str, device: str) -> None:
        rate = f"{self._mbps:g}mbit"
        limit = ["rate", rate, "burst", _BURST, "latency", _LATENCY]
        subprocess.run(
            ["tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", *limit], check=True
        )

    def _remove(self) -> None:
        for name in (*self.names, "hub"):
            space = self._space(name)
            if Path("/run/netns", space).exists():
                _ip("netns", "del", space)

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def demand(*programs: str) -> None:
    """Say which programs are missing, and how to get them."""
    packages = {"ip": "iproute2", "tc": "iproute2"}
    missing = {packages.get(one, one) for one in programs if shutil.which(one) is None}
    if missing:
        names = " ".join(sorted(missing))
        raise SystemExit(f"this needs {names}: apt-get install {names}")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
