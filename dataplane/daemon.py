"""The processes: one role in this process, or all of them as children that are kept alive.

A role that ends, for whatever reason, ends its process; whoever supervises starts it again. That
is the whole error handling at this level, and it is safe because nothing is held in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import enum
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dataplane.api import open_log
from dataplane.audit.archiving import ArchiveKeeper
from dataplane.catalog import Catalog
from dataplane.config import DataPlaneConfig
from dataplane.credentials import look_at_agent_files, look_at_page_files, warn_of_open_keys
from dataplane.holding import DirectoryInUse, hold
from dataplane.presence import NameTaken
from dataplane.pulse import PULSE_LIMIT_S, PULSE_S, PULSE_VARIABLE, SOCKET_VARIABLE, Pulse
from streams.jetstream import JetStreamLog
from streams.log import LogUnavailable, NoLongerHeld, PermissionDenied
from streams.server import HOST, EmbeddedServer, ServerFailed

if TYPE_CHECKING:
    from dataplane.agent.agent import Agent
    from dataplane.coordinator.coordinator import Coordinator

logger = logging.getLogger(__name__)

#: Set for children: they end when this process does.
PARENT_VARIABLE = "DATAPLANE_PARENT_PID"
_RESTART_FIRST_S, _RESTART_MOST_S = 0.2, 5.0
#: A child that lived for this long is started again at once.
_STEADY_S = 10.0
_STOP_S = 10.0
#: A bus that is not there yet is asked again for this long before the process gives up.
_BUS_PATIENCE_S = 60.0


class Part(enum.StrEnum):
    """What a process of the data plane can be."""

    COORDINATOR = "coordinator"
    AGENT = "agent"


class UnifiedDataPlaneDaemon:
    """Coordinator, agent or both, in this event loop. `run` until cancelled, or `start`/`stop`."""

    def __init__(
        self,
        config: DataPlaneConfig | None = None,
        parts: Iterable[Part] = (Part.COORDINATOR, Part.AGENT),
    ) -> None:
        self.config = config or DataPlaneConfig.load()
        self._wanted = tuple(parts)
        self._parts: list[Coordinator | Agent] = []
        self._log: JetStreamLog | None = None
        self.catalog = Catalog(self.config)
        self._running: asyncio.Task[None] | None = None
        self._locks: list[IO[str]] = []

    async def start(self) -> None:
        """Connect, bring the views up to the log, register, serve; then go on in the background."""
        await self._open()
        self._running = asyncio.create_task(self._run_parts(), name="dataplane")

    async def stop(self, *, last_push: bool = True) -> None:
        """End in order; what was under way is done again at the next start.

        With `last_push` an agent first brings to the bucket what that lacks, for a while.
        """
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self.catalog.close()
        for part in reversed(self._parts):
            try:
                if last_push:
                    await part.part()
            finally:
                await part.stop()
        self._parts = []
        for lock in self._locks:
            lock.close()
        self._locks = []
        if self._log is not None:
            await self._log.close()
            self._log = None

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Start and go on until this is cancelled or a part fails; then stop.

        `started` is called once all parts have.
        """
        told = False
        try:
            await self.start()
            started()
            assert self._running is not None
            await self._running
        except asyncio.CancelledError:
            told = True
            raise
        finally:
            await self.stop(last_push=told)

    async def _open(self) -> None:
        _look_at_files(self.config, self._wanted)
        self._log = log = await _patiently_connect(self.config)
        bounded = self.config.log_max_age_seconds > 0
        await log.ensure_topology(replicas=self.config.replicas, bounded=bounded)
        for part in self._wanted:
            coordinates = part is Part.COORDINATOR
            place = self.config.views_dir if coordinates else self._data_place()
            self._locks.append(hold(place))
            made = _made(part, log, self.config)
            await made.start()
            self._parts.append(made)

    def _data_place(self) -> Path:
        """Where an agent works, before anything is made there. Raises `NotMounted`."""
        from dataplane.agent.ground import stand_on

        stand_on(self.config.data_dir, self.config.state_dir)
        return self.config.data_dir / ".dataplane"

    async def _run_parts(self) -> None:
        assert self._log is not None
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(part.run())
            group.create_task(_end_with(self._log))


def _look_at_files(config: DataPlaneConfig, parts: Iterable[Part]) -> None:
    """Whether the parts can use what the configuration names. Raises ConfigError."""
    looks = {Part.AGENT: look_at_agent_files, Part.COORDINATOR: look_at_page_files}
    for part in parts:
        looks[part](config)
    warn_of_open_keys(config)


def _made(part: Part, log: JetStreamLog, config: DataPlaneConfig) -> Coordinator | Agent:
    """A part, not yet started. Only what a process runs is loaded into it."""
    if part is Part.COORDINATOR:
        from dataplane.coordinator.coordinator import Coordinator

        keeper = ArchiveKeeper(log, config) if config.archive else None
        return Coordinator(log, log.bus, config, keeper)
    from dataplane.agent.agent import Agent

    return Agent(log, log.bus, config)


async def _end_with(log: JetStreamLog) -> None:
    """A connection that is closed for good never comes back: the process must."""
    reason = await log.connection.closed
    raise LogUnavailable(f"the connection to the bus was closed for good: {reason}")


async def _patiently_connect(config: DataPlaneConfig) -> JetStreamLog:
    """Connect, waiting for a bus that is just starting; wrong credentials are said at once."""
    deadline = time.monotonic() + _BUS_PATIENCE_S
    told = False
    while True:
        try:
            return await open_log(config)
        except PermissionDenied:
            raise
        except LogUnavailable as error:
            if time.monotonic() > deadline:
                raise
            # Once: whoever waits for long ends, and the one started in his place says it again.
            if not told:
                logger.info("waiting for the bus: %s", error)
            told = True
            await asyncio.sleep(0.5)


def run_parts(config: DataPlaneConfig, parts: Iterable[Part]) -> int:
    """Run roles in this process until SIGTERM or SIGINT; the exit status, as of a command."""
    _die_with_parent()
    # The digest threads give the event loop its turn ten times sooner than by default.
    sys.setswitchinterval(0.0005)
    pulse = Pulse()

    def started() -> None:
        leave_to_the_end()
        pulse.ready()

    return asyncio.run(_until_told(UnifiedDataPlaneDaemon(config, parts).run(started), pulse))


def leave_to_the_end() -> None:
    """Let the garbage collector pass over what is there now, most of which stays to the end.

    To look through all of it took a loaded coordinator 30 ms each time, in the midst of a decision.
    """
    gc.collect()
    gc.freeze()


async def _until_told(work: Coroutine[Any, Any, None], pulse: Pulse) -> int:
    """Run until a signal cancels it: 0; or until it fails, with the reason logged. It has a pulse
    meanwhile.

    3 where what it needs is out of reach or taken, 1 for an error of ours.
    """
    # First: the work may hang at its first step.
    beating = asyncio.create_task(pulse.beat())
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return 0
    except _out_of_reach() as error:
        logger.error("%s", _in_words(error))
        return 3
    except NameTaken as error:
        logger.error("%s", error)
        return 1
    except BaseExceptionGroup as errors:
        known, others = errors.split(_told())
        if known is not None and others is None:
            logger.error("%s", "; ".join(sorted({_in_words(error) for error in _leaves(known)})))
            return 3
        logger.error("stopped by an error", exc_info=errors)
        return 1
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    return 0


def _out_of_reach() -> tuple[type[Exception], ...]:
    return *_told(), ServerFailed, DirectoryInUse, OSError


def _told() -> tuple[type[Exception], ...]:
    """What is out of reach or damaged, of which the text says all: no error of ours.

    Who has no views never loads what opens them.
    """
    from projections.store import StoreError

    return LogUnavailable, PermissionDenied, NoLongerHeld, StoreError


def _in_words(error: BaseException) -> str:
    if isinstance(error, NoLongerHeld):
        return f"{error}. A log that lost messages is restored from its archive, onto an empty bus"
    return str(error)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class Supervisor:
    """The embedded bus, a coordinator and an agent as children; each is kept alive."""

    def __init__(
        self,
        config: DataPlaneConfig,
        parts: Iterable[Part] = tuple(Part),
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._parts = tuple(parts)
        self._environment = dict(environment or {})
        self._server: EmbeddedServer | None = None

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Start all and keep them alive until this is cancelled; then stop all.

        `started` is called once the bus is there, and the others are about to be.
        """
        async with self._bus() as url, asyncio.TaskGroup() as group:
            self._environment["DATAPLANE_NATS_URL"] = url
            for part in self._parts:
                group.create_task(self._keep_alive(part))
            started()

    @contextlib.asynccontextmanager
    async def _bus(self) -> AsyncIterator[str]:
        """The configured bus, or an embedded one that is kept alive too."""
        config = self._config
        if config.nats_url:
            yield config.nats_url
            return
        server = EmbeddedServer(config.state_dir / "nats", port=config.nats_port)
        check_free(config.nats_port)
        await server.start_async()
        config.bus_file.write_text(server.url)
        logger.info("bus on %s, its log in %s", server.url, server.store_dir)
        keeper = asyncio.create_task(_keep_server_alive(server))
        try:
            yield server.url
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await server.stop_async()
            config.bus_file.unlink(missing_ok=True)

    async def _keep_alive(self, part: Part) -> None:
        pause = _RESTART_FIRST_S
        while True:
            started = time.monotonic()
            status = await self._run_child(part)
            lived = time.monotonic() - started
            pause = _RESTART_FIRST_S if lived > _STEADY_S else min(pause * 2, _RESTART_MOST_S)
            logger.warning("%s ended (%s) and is started again", part, _said(status))
            await asyncio.sleep(pause)

    async def _run_child(self, part: Part) -> int:
        command = [sys.executable, "-m", "dataplane", str(part)]
        pulse = self._config.state_dir / f"pulse.{part}"
        environment = {
            **os.environ,
            **self._environment,
            PARENT_VARIABLE: str(os.getpid()),
            PULSE_VARIABLE: str(pulse.resolve()),
        }
        # What this process says to systemd is not theirs to say.
        environment.pop(SOCKET_VARIABLE, None)
        pulse.unlink(missing_ok=True)
        child = await asyncio.create_subprocess_exec(*command, env=environment)
        logger.info("%s runs as process %d", part, child.pid)
        feeling = asyncio.create_task(_kill_without_pulse(child, part, pulse))
        try:
            return await child.wait()
        finally:
            feeling.cancel()
            if child.returncode is None:
                await _stop_child(child, _STOP_S + self._config.shutdown_push_seconds)


async def _kill_without_pulse(
    child: asyncio.subprocess.Process, part: Part, pulse: Path, limit_s: float = PULSE_LIMIT_S
) -> None:
    """Kill a child that is there and does nothing: liveness is not progress."""
    seen, felt_at = 0, time.monotonic()
    while child.returncode is None:
        await asyncio.sleep(min(PULSE_S, limit_s / 4))
        if (beat := _last_beat(pulse)) != seen:
            seen, felt_at = beat, time.monotonic()
        silent_s = time.monotonic() - felt_at
        if silent_s > limit_s:
            logger.error("%s gave no sign of life for %.0f s and is killed", part, silent_s)
            child.kill()
            return


def _last_beat(pulse: Path) -> int:
    try:
        return pulse.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def check_free(port: int) -> None:
    """Raises ServerFailed, with what to do about it, where somebody listens on a bus's port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerFailed(
                f"no bus can be started on {HOST}:{port}: {error.strerror}. If what listens there "
                f"is your bus, use it: --nats nats://{HOST}:{port}; else choose another port: "
                "nats_port in dataplane.toml"
            ) from None


async def _keep_server_alive(server: EmbeddedServer) -> None:
    while True:
        status = await server.wait()
        logger.warning("the bus ended (%s) and is started again", _said(status or 0))
        await asyncio.sleep(_RESTART_FIRST_S)
        await server.start_async()


async def _stop_child(child: asyncio.subprocess.Process, limit_s: float) -> None:
    """SIGTERM, and SIGKILL where that is not heeded in time."""
    child.terminate()
    try:
        await asyncio.wait_for(child.wait(), limit_s)
    except TimeoutError:
        child.kill()
        await child.wait()


def supervise(config: DataPlaneConfig, environment: Mapping[str, str] | None = None) -> int:
    """Run ``dataplane up`` until SIGTERM or SIGINT; the exit status."""
    # Its parts would be started again and again.
    _look_at_files(config, Part)
    try:
        lock = hold(config.state_dir)
    except DirectoryInUse as error:
        logger.error("%s", error)
        return 3
    with lock:
        pulse = Pulse()
        work = Supervisor(config, environment=environment).run(pulse.ready)
        return asyncio.run(_until_told(work, pulse))


def _said(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _die_with_parent() -> None:
    """A child whose supervisor was killed must not go on unseen. Best effort, on Linux."""
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent or not sys.platform.startswith("linux"):
        return
    set_death_signal, get_death_signal = 1, 2
    prctl, asked = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(get_death_signal, ctypes.byref(asked))
    # Who starts it may have asked for another one.
    if not asked.value:
        prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
