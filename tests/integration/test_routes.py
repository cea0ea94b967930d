"""The door between servers of a bus with keys: who does not know their secret is none of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dataplane.keys import KeyStore
from dataplane.prove.servers import CLUSTER_NAME, BusServer, clustered
from streams.codec import STREAM
from streams.connection import Connection
from streams.jetstream import JetStreamLog
from streams.log import LogError
from streams.server import HOST, EmbeddedServer, default_config
from streams.wire import Message, api
from tests.integration.certificates import Authority
from tests.integration.cluster import until

SAID = "dp.chain.stranger.DATA_SYNC_COMPLETED.all"
REFUSED = "Authorization Violation"


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """Coordinators alone."""
    store = KeyStore(tmp_path / "keys")
    store.init()
    return store


@asynccontextmanager
async def running(
    base: Path, keys: KeyStore, change: Callable[[Path], None] = lambda _: None
) -> AsyncIterator[list[BusServer]]:
    """Three servers, each with the configuration that `change` left in its directory."""
    servers = clustered(base / "bus", base / "logs", keys=keys)
    for server in servers:
        change(base / "bus" / server.name / "nats.conf")
    await asyncio.gather(*(server.start() for server in servers))
    try:
        yield servers
    finally:
        await asyncio.gather(*(server.kill() for server in servers))


@asynccontextmanager
async def watching(servers: list[BusServer], keys: KeyStore) -> AsyncIterator[JetStreamLog]:
    """A coordinator's connection, on a bus with its streams."""
    seed = keys.seed_file("coordinator")
    urls = [server.url for server in servers]
    log = await JetStreamLog.connect(urls, name="watcher", nkey_seed_file=seed)
    try:
        await log.ensure_topology(replicas=len(servers))
        yield log
    finally:
        await log.close()


def _configured(base: Path, within: Sequence[str]) -> Path:
    """The configuration of a server that knows where the others listen, and `within`."""
    home = base / f"stranger-{len(list(base.iterdir()))}"
    home.mkdir()
    config = home / "nats.conf"
    listens = re.compile(rf'{CLUSTER_NAME}, listen: "({HOST}:\d+)"')
    texts = [file.read_text() for file in (base / "bus").glob("*/nats.conf")]
    routes = [f'"nats-route://{one[1]}"' for text in texts if (one := listens.search(text))]
    assert len(routes) == 3
    config.write_text(
        f"{default_config().read_text()}\nserver_name: stranger\n"
        f'cluster {{ name: {CLUSTER_NAME}, listen: "{HOST}:-1", routes: [{", ".join(routes)}]\n'
        + "\n".join(within)
        + "\n}\n"
    )
    return config


@asynccontextmanager
async def stranger(base: Path, *within: str) -> AsyncIterator[EmbeddedServer]:
    """Somebody else's server; `within` is what it says of the cluster beside addresses."""
    config = _configured(base, within)
    server = EmbeddedServer(config.parent, config=config)
    await server.start_async()
    try:
        yield server
    finally:
        server.kill()


def _lines(base: Path, server: EmbeddedServer) -> str:
    """What it says, and what the others do: one of them knows why it is not let in."""
    files = [server.log_file, *(base / "logs").iterdir()]
    return "".join(file.read_text(errors="replace") for file in files)


async def _says(server: EmbeddedServer) -> None:
    """A client without any key ends a chain of its own, at that server."""
    client = await Connection.connect(server.url, name="nobody")
    try:
        await client.send(Message(SAID, b"{}"))
        await client.flush()
    finally:
        await client.close()


async def _reads(server: EmbeddedServer) -> bool:
    """Whether a client without any key is told of the log there."""
    client = await Connection.connect(server.url, name="nobody")
    try:
        return "state" in await api(client, f"STREAM.INFO.{STREAM}", timeout_s=1.0)
    except LogError:
        return False
    finally:
        await client.close()


async def _in_the_log(log: JetStreamLog) -> bool:
    info = await api(log.connection, f"STREAM.INFO.{STREAM}", {"subjects_filter": SAID})
    return SAID in (info["state"].get("subjects") or {})


async def _is_shut_out(base: Path, log: JetStreamLog, *within: str, why: str = REFUSED) -> None:
    """Its route is refused, and it neither hears nor is heard."""
    async with stranger(base, *within) as server:
        await until(lambda: why in _lines(base, server), f"a stranger to be refused: {why}")
        await _says(server)
        assert not await _reads(server)
        assert not await _in_the_log(log)


async def test_only_who_knows_the_secret_is_a_server_of_a_bus_with_keys(
    tmp_path: Path, keys: KeyStore
) -> None:
    """No secret, or a wrong one: refused. With it a server's clients need no key of ours at all."""
    async with running(tmp_path, keys) as servers, watching(servers, keys) as log:
        secret = keys.routes_include.read_text()
        await _is_shut_out(tmp_path, log)
        await _is_shut_out(tmp_path, log, re.sub(r"[0-9a-f]{64}", "0" * 64, secret))
        async with stranger(tmp_path, secret) as server:
            await until(lambda: _reads(server), "a server with the secret to be one of them")
            await _says(server)
            await until(lambda: _in_the_log(log), "what is said there to be in the log")


async def test_a_bus_that_runs_is_shut_by_reloading_one_server_after_another(
    tmp_path: Path, keys: KeyStore
) -> None:
    """As an upgrade does it: the log goes on at every step, and then a stranger is refused."""

    def opened(config: Path) -> None:
        config.write_text(re.sub(r'include "[^"]*routes.conf"\n', "", config.read_text()))

    async with running(tmp_path, keys, opened) as servers, watching(servers, keys) as log:
        async with stranger(tmp_path) as server:
            await until(lambda: _reads(server), "the door to be open")
        for server in servers:
            _shut(tmp_path / "bus" / server.name / "nats.conf", keys)
            os.kill(server.pid, signal.SIGHUP)
            said = tmp_path / "logs" / f"{server.name}.log"
            await until(lambda: "Reloaded server conf" in said.read_text(), "the reload")  # noqa: B023
            await until(lambda: _replicates(log), "every replica to be current")
        await _is_shut_out(tmp_path, log)


def _shut(config: Path, keys: KeyStore) -> None:
    """Include the servers' secret, as an operator does."""
    where = os.path.relpath(keys.routes_include, config.parent)
    text = config.read_text()
    config.write_text(text[: text.rindex("}")] + f'include "{where}"\n}}\n')


async def _replicates(log: JetStreamLog) -> bool:
    try:
        where = (await api(log.connection, f"STREAM.INFO.{STREAM}"))["cluster"]
    except LogError:
        return False
    return bool(where.get("leader")) and all(one["current"] for one in where["replicas"])


async def test_with_tls_among_servers_the_secret_alone_is_not_enough(
    tmp_path: Path, keys: KeyStore
) -> None:
    """Each shows the other a certificate of the cluster's own authority, as tls.conf has it."""
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    shipped = (Path(__file__).parents[2] / "deploy" / "nats" / "tls.conf").read_text()

    def certified(home: Path, signer: Authority) -> None:
        """What tls.conf speaks of, beside it; `ours` is what everybody may know."""
        (home / "tls").mkdir(parents=True)
        certificate, key = signer.issue(home.name)
        certificate.rename(home / "tls" / "server.pem")
        key.rename(home / "tls" / "server.key")
        (home / "tls" / "ca.pem").write_bytes(ours.file.read_bytes())
        (home / "tls.conf").write_text(shipped)

    def with_tls(config: Path) -> None:
        certified(config.parent, ours)
        text = config.read_text().replace("no_advertise", 'include "tls.conf"\nno_advertise')
        config.write_text(text)

    async with running(tmp_path, keys, with_tls) as servers, watching(servers, keys) as log:
        await until(lambda: _replicates(log), "every replica to be current")
        known = keys.routes_include.read_text()
        certified(tmp_path / "false", other)
        tls = shipped.replace("tls/", f"{tmp_path}/false/tls/")
        await _is_shut_out(tmp_path, log, known, tls, why="failed to verify certificate")
        certified(tmp_path / "true", ours)
        tls = shipped.replace("tls/", f"{tmp_path}/true/tls/")
        async with stranger(tmp_path, known, tls) as server:
            await until(lambda: _reads(server), "a server with both to be one of them")
