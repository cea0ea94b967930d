"""What all tests share: one real nats-server a session, and a clean log on it for each test."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from dataplane.logs import JsonFormatter
from streams.jetstream import JetStreamLog
from streams.log import LogUnavailable
from streams.server import EmbeddedServer
from streams.wire import api

# An example that takes long on a busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
#: Generous: the machine that runs the tests may be busy with something else.
PATIENCE_S = 30.0
#: The oldest server that the log runs on.
IMAGE = "nats:2.12-alpine"


class Server(Protocol):
    """A running nats-server."""

    @property
    def url(self) -> str: ...


def pytest_configure(config: pytest.Config) -> None:
    """Commands that tests start hear an interrupt, also where a shell began all this behind it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--containers`` runs the bus from its published image instead of from the wheel."""
    parser.addoption("--containers", action="store_true", help="nats-server in a container")


@pytest.fixture
def json_lines() -> Iterator[list[dict[str, str]]]:
    """What is logged from now on, each line as ``--log-json --verbose`` writes it."""
    lines: list[dict[str, str]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(self.format(record)))

    handler = Kept()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger("dataplane")
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture(scope="session")
def nats_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The session's bus; without its binary the tests fail, they never skip."""
    if request.config.getoption("--containers"):
        yield from _container()
        return
    server = EmbeddedServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


def _container() -> Iterator[Server]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.waiting_utils import wait_for_logs

    class Contained:
        url = ""

    port = 4222
    with DockerContainer(IMAGE).with_command("-js").with_exposed_ports(port) as container:
        wait_for_logs(container, "Server is ready")
        host = container.get_container_host_ip()
        server = Contained()
        server.url = f"nats://{host}:{container.get_exposed_port(port)}"
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A nats-server of this test's own, to be killed and restarted; not started yet."""
    server = EmbeddedServer(tmp_path / "nats")
    yield server
    server.stop()


@pytest.fixture
async def jetstream_log(nats_server: Server) -> AsyncIterator[JetStreamLog]:
    """A log on the session's bus with nothing in it."""
    async with empty_log(nats_server.url) as log:
        yield log


@asynccontextmanager
async def empty_log(url: str, *, bounded: bool = False) -> AsyncIterator[JetStreamLog]:
    """A log with nothing in it; for fixtures that choose what they need while they run."""
    log = await JetStreamLog.connect(url, name="test")
    await wipe(log)
    await eventually(lambda: _made(log, bounded))
    yield log
    await log.close()


async def _made(log: JetStreamLog, bounded: bool) -> bool:
    """The server answers a deletion before it has removed the files, and trips over them."""
    try:
        return await log.ensure_topology(bounded=bounded) == []
    except LogUnavailable:
        return False


async def wipe(log: JetStreamLog) -> None:
    """Delete every stream: the log denies its messages' deletion, not its own."""
    for name in (await api(log.connection, "STREAM.NAMES"))["streams"] or []:
        await api(log.connection, f"STREAM.DELETE.{name}")


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = PATIENCE_S
) -> None:
    """Wait until `condition` holds; fail if it takes too long."""
    deadline = time.monotonic() + timeout_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, f"{condition} did not hold within {timeout_s} s"
        await asyncio.sleep(0.01)
