"""Processes as children with files of their own: started, killed, paused, started again.

No child outlives the process that made it, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataplane.config import ENVIRONMENT_PREFIX
from dataplane.daemon import PARENT_VARIABLE
from streams.server import death_wish

_STOP_S = 5.0
_TAIL_LINES = 15


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """The environment of a child with these settings, and none that this process was given."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    env |= {f"{ENVIRONMENT_PREFIX}{k.upper()}": str(v) for k, v in settings.items()}
    return env | {PARENT_VARIABLE: str(os.getpid()), "COLUMNS": "200"}


@dataclass(frozen=True)
class Layout:
    """Where everything of a demo lies, below one directory."""

    root: Path

    @property
    def nats(self) -> Path:
        """The bus's store."""
        return self.root / "nats"

    def data(self, node: str) -> Path:
        """A node's data directory."""
        return self.root / node / "data"

    def state(self, node: str) -> Path:
        """A node's, or the coordinator's, state directory."""
        return self.root / node / "state"

    def log(self, name: str) -> Path:
        """What a process writes."""
        return self.root / "logs" / f"{name}.log"


class Child:
    """One process: started, killed, and started again."""

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, log: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.status = "not started"
        self._command, self._directory, self._log, self._env = command, directory, log, env
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._retired = False

    @property
    def pid(self) -> int:
        """The process id; 0 if it was never started."""
        return self._process.pid if self._process else 0

    @property
    def ended(self) -> int | None:
        """The exit status of a process that ended by itself; None if it runs or was told to end."""
        if self._process is None or self.status != "running":
            return None
        return self._process.returncode

    async def start(self, **more: str) -> None:
        """Start it, again if it was started before; with `more` in its environment."""
        if self._retired:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={**self._env, **more},
                # A Ctrl-C on the terminal is for the demo, which then stops its children in order.
                start_new_session=True,
                # It may be paused when this process ends.
                preexec_fn=death_wish(signal.SIGKILL),
            )
        if self._retired:
            await self.kill()
            return
        self.status = "running"

    async def kill(self) -> int:
        """End it by SIGKILL, as a crash would; the process id that was killed."""
        return await self._end(signal.SIGKILL, "killed")

    async def retire(self) -> None:
        """End it by SIGKILL, for good: whoever starts it, or is just doing so, starts nothing."""
        self._retired = True
        await self.kill()

    async def stop(self) -> None:
        """End it by SIGTERM, by SIGKILL if that takes too long. Harmless if it has ended."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._end(signal.SIGTERM, "stopped")
        except TimeoutError:
            await self.kill()

    def pause(self) -> None:
        """Stop its clock, as a virtual machine that is suspended has none."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`. Harmless if it was not paused."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def finish(self) -> None:
        """Wait until it ends by itself."""
        if self._process is not None:
            await self._process.wait()

    async def _end(self, number: signal.Signals, status: str) -> int:
        if self._process is None:
            return 0
        self.status = status
        if self._process.returncode is None:
            self._process.send_signal(number)
        await self._process.wait()
        return self._process.pid

    def tail(self) -> str:
        """The last lines it wrote."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (nothing)"

    def last_words(self) -> str:
        """The last line it wrote since it was started; "" if it wrote none."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        # A traceback of a group ends in its frame.
        said = (line.strip(" |+-") for line in reversed(lines))
        return next((line for line in said if line), "")
