"""A bus that TLS is configured for: nothing is said to one without it, by whoever took it out."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest

from streams.jetstream import JetStreamLog
from streams.log import LogUnavailable, PermissionDenied
from streams.server import EmbeddedServer, default_config
from tests.integration.certificates import Authority

INFO = {"server_id": "x", "version": "2.12.0", "headers": True, "max_payload": 1_000_000}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who signs the bus's certificate."""
    return Authority(tmp_path / "tls")


@pytest.mark.parametrize("by", ["nats_tls_ca", "tls://"])
async def test_a_bus_that_offers_no_tls_is_told_nothing_where_it_must(
    authority: Authority, by: str
) -> None:
    """Neither password nor name: who sits between could take TLS out of the greeting."""
    heard = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(INFO).encode() + b" \r\n")
        heard.extend(await reader.read(4096))
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        scheme = "tls" if by == "tls://" else "nats"
        tls = authority.trusting() if by == "nats_tls_ca" else None
        with pytest.raises(LogUnavailable, match=r"offers no TLS.*nats_tls_ca"):
            await JetStreamLog.connect(
                f"{scheme}://127.0.0.1:{port}", user="node", password="geheim", tls=tls
            )
    assert not heard


async def test_a_bus_that_also_lets_in_without_tls_is_spoken_to_by_it(
    tmp_path: Path, authority: Authority
) -> None:
    """While a cluster is changed over: whose certificate is another's is not trusted."""
    certificate, key = authority.issue("bus")
    conf = tmp_path / "nats.conf"
    conf.write_text(
        f"{default_config().read_text()}\nallow_non_tls: true\n"
        f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n'
    )
    server = EmbeddedServer(tmp_path / "nats", config=conf)
    server.start()
    try:
        log = await JetStreamLog.connect(server.url, name="test", tls=authority.trusting())
        await log.ensure_topology()
        await log.close()
        with pytest.raises(LogUnavailable, match="no TLS with the NATS server"):
            await JetStreamLog.connect(server.url, tls=ssl.create_default_context())
        plain = await JetStreamLog.connect(server.url)
        await plain.close()
    finally:
        server.stop()


async def test_a_node_on_a_bus_without_a_stream_is_told_to_start_a_coordinator(
    tmp_path: Path,
) -> None:
    """Its key may not make the stream, and the server's words alone say nothing of who may."""
    conf = tmp_path / "nats.conf"
    users = (
        "authorization { users: [ { user: node, password: geheim, permissions: { "
        'publish: { allow: ["$JS.API.INFO", "$JS.API.STREAM.INFO.>"] } } } ] }'
    )
    conf.write_text(f"{default_config().read_text()}\n{users}\n")
    server = EmbeddedServer(tmp_path / "nats", config=conf)
    server.start()
    try:
        log = await JetStreamLog.connect(server.url, user="node", password="geheim")
        with pytest.raises(PermissionDenied, match=r"no stream DATAPLANE yet.*start a coordinator"):
            await log.ensure_topology()
        await log.close()
    finally:
        server.stop()
