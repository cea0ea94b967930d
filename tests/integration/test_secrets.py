"""TLS on the bus and on the page, and secrets that were planted everywhere and found nowhere."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from dataplane import DataPlane, DataPlaneConfig
from dataplane.presence import KEYS_BUCKET
from streams.codec import Fact, fact_id, node_fact
from streams.events import SelfplayComplete
from streams.jetstream import JetStreamLog
from streams.log import LogUnavailable, PermissionDenied
from streams.server import default_config
from streams.values import Role
from tests.integration.certificates import Authority
from tests.integration.cluster import LocalCluster, until

PASSWORD = "planted-password-31337"
IN_URL = "planted-in-the-url-31337"
TOKEN = "planted-token-of-the-page-31337"
USERS = f"""
authorization: {{ users: [
  {{ user: boss, password: "{IN_URL}" }}
  {{ user: node, password: "{PASSWORD}" }}
] }}
tls: {{ cert_file: "SERVER.pem", key_file: "SERVER.key", ca_file: "CA", verify: true }}
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who signs the bus's, the page's and the clients' certificates."""
    return Authority(tmp_path / "tls")


@pytest.fixture
async def cluster(tmp_path: Path, authority: Authority) -> AsyncIterator[LocalCluster]:
    """All over TLS and behind passwords; a coordinator that logs JSON, a player and a trainer."""
    cert, key = authority.issue("bus")
    users = USERS.replace("SERVER.pem", str(cert)).replace("SERVER.key", str(key))
    conf = tmp_path / "nats.conf"
    conf.write_text(default_config().read_text() + users.replace("CA", str(authority.file)))
    client, client_key = authority.issue("client")
    tls = {
        "nats_tls_ca": authority.file,
        "nats_tls_cert": client,
        "nats_tls_key": client_key,
        "web_port": 0,
    }
    boss = {"user": "boss", "password": IN_URL, "tls": authority.trusting("watcher")}
    async with LocalCluster(tmp_path, bus=conf, watcher=boss, **tls) as cluster:  # type: ignore[arg-type]
        page, page_key = authority.issue("page")
        cluster.coordinator(
            "coord",
            DATAPLANE_NATS_URL=cluster.server.url.replace("//", f"//boss:{IN_URL}@"),
            DATAPLANE_WEB_TOKEN=TOKEN,
            DATAPLANE_WEB_TLS_CERT=str(page),
            DATAPLANE_WEB_TLS_KEY=str(page_key),
            DATAPLANE_LOG_JSON="1",
        )
        node = {"DATAPLANE_NATS_USER": "node", "DATAPLANE_NATS_PASSWORD": PASSWORD}
        cluster.agent("gpu-7", Role.SELFPLAY, **node)
        cluster.agent("train-1", Role.TRAINING, **node)
        await cluster.joined("coord", "gpu-7", "train-1")
        yield cluster


async def test_planted_secrets_are_found_nowhere(
    cluster: LocalCluster, authority: Authority, tmp_path: Path
) -> None:
    """Not in events, logs, pages, exceptions or answers, whatever fails."""
    cluster.play("gpu-7", 5)
    await cluster.log.publish(played(1))
    await cluster.assert_exactly_once(fact_id("played", 1))
    # Something to complain of: a bus that goes away and comes back, and a node that is gone.
    cluster.server.kill()
    cluster.server.start()
    cluster.kill("gpu-7")
    await cluster.log.publish(played(2))
    key = await cluster.log.bus.kv_get(KEYS_BUCKET, "http_signing")
    assert key is not None
    secrets = [PASSWORD, IN_URL, TOKEN, base64.b64encode(key).decode(), key.hex(), "signature="]

    pages = await _pages(cluster, authority)
    said = await _everything_said(cluster)
    logs = "".join(file.read_text(errors="replace") for file in cluster.base.glob("*/log"))
    errors = [await _refused(cluster, authority), _command(cluster, tmp_path)]
    for secret in secrets:
        for where, text in (("pages", pages), ("events", said), ("logs", logs)):
            assert text, where
            assert secret not in text, (secret, where)
        assert not any(secret in error for error in errors), (secret, errors)
    lines = (cluster.base / "coord" / "log").read_text().splitlines()
    assert all({"time", "level", "logger", "message"} <= set(json.loads(line)) for line in lines)
    assert lines


def played(number: int) -> Fact:
    """A trigger of gpu-7."""
    event = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
    return node_fact(event, "gpu-7", fact_id("played", number))


async def _pages(cluster: LocalCluster, authority: Authority) -> str:
    """The page by HTTPS, with the token, and what it answers to who has none."""
    url = (cluster.base / "coord" / "state" / "web_url").read_text()
    assert url.startswith("https://")
    found = []
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(ssl=authority.trusting())
    async with aiohttp.ClientSession(connector=connector) as session:
        for page in ("", "facts", "chains", "data", "node/gpu-7", "api/overview", "metrics"):
            async with session.get(url + page) as answer:
                assert answer.status == 401
                found.append(await answer.text())
            await until(partial(_answered, session, url + page, bearer, found), page)
    async with aiohttp.ClientSession() as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(url)
    return "".join(found)


async def _answered(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str], found: list[str]
) -> bool:
    """Whether it could answer: the bus was away just now, and what it said of that counts too."""
    async with session.get(url, headers=headers) as answer:
        found.append(await answer.text())
        return answer.status == 200


async def _everything_said(cluster: LocalCluster) -> str:
    """Every fact of the log, and what the bucket of heartbeats holds."""
    facts = [str(fact) for fact in await cluster.facts()]
    beats = await cluster.log.bus.kv_all("DP_NODES")
    return "".join([*facts, *(value.decode() for value in beats.values())])


async def _refused(cluster: LocalCluster, authority: Authority) -> str:
    """What is raised where the password, or the certificate, is wrong."""
    url = cluster.server.url
    trusting = authority.trusting("again")
    with pytest.raises(PermissionDenied) as denied:
        await JetStreamLog.connect(url, user="node", password=PASSWORD + "x", tls=trusting)
    with pytest.raises(LogUnavailable) as unsigned:
        await JetStreamLog.connect(url, user="node", password=PASSWORD)
    config = DataPlaneConfig(
        nats_url=url.replace("//", f"//boss:{IN_URL}@"), nats_password=PASSWORD, web_token=TOKEN
    )
    with pytest.raises(LogUnavailable) as shown:
        async with DataPlane.connect(config=config) as plane:
            await plane.log()
    return f"{denied.value!r} {unsigned.value!r} {shown.value!r} {config!r} {config}"


def _command(cluster: LocalCluster, tmp_path: Path) -> str:
    """A command that fails, with all it has to say."""
    own = {
        "DATAPLANE_NATS_URL": cluster.server.url.replace("//", f"//boss:{IN_URL}x@"),
        "DATAPLANE_NATS_PASSWORD": PASSWORD,
        "DATAPLANE_NATS_TLS_CA": "/nowhere/ca.pem",
        "DATAPLANE_STATE_DIR": str(tmp_path / "none"),
    }
    command = [sys.executable, "-m", "dataplane", "--verbose", "replay"]
    ended = subprocess.run(
        command, env={**os.environ, **own}, capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 2
    assert "nats_tls_ca" in ended.stderr
    return ended.stdout + ended.stderr
