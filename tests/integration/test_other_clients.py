"""What knows nothing of this code: the ``nats`` command, and a client in Node.js."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streams.values import Role
from tests.integration.cluster import LocalCluster

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "tests" / "node" / "client.mjs"
#: Where ``make system`` puts what no package of the system brings.
BIN = Path(sys.executable).parent


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A coordinator, a player and a trainer, joined."""
    async with LocalCluster(tmp_path, web_port=0) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        yield cluster


async def run(*command: str, cwd: Path | None = None, status: int = 0, **more: str) -> str:
    """What a command says; it must end as expected."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=cwd,
        env={**os.environ, **more},
    )
    said, _ = await process.communicate()
    assert process.returncode == status, said.decode()
    return said.decode()


async def test_a_node_js_client_says_and_hears(cluster: LocalCluster, tmp_path: Path) -> None:
    """It publishes SELFPLAY_COMPLETE, durably consumes NEW_GAMES_AVAILABLE, and goes on there."""
    node = shutil.which("node")
    modules = BIN.parent / "node" / "node_modules"
    assert node and modules.is_dir(), "there is no node, or no client for it; make system"
    (tmp_path / "node_modules").symlink_to(modules)
    client = tmp_path / "client.mjs"
    client.write_text(CLIENT.read_text())
    for games in (5, 9):
        cluster.play("gpu-7", games - (0 if games == 5 else 5))
        said = json.loads(await run(node, str(client), cluster.server.url, str(games)))
        # Had the first one not been remembered as done, the second run would get it again.
        assert said["event"]["game_count"] == games
        assert said["event"]["source_node"] == "gpu-7"
        assert said["subject"].startswith("dp.chain.")
        assert cluster.received("train-1", "gpu-7").exists()


@pytest.fixture
def nats(cluster: LocalCluster, tmp_path: Path) -> Any:
    """The ``nats`` command with a context for the test's bus."""
    binary = shutil.which("nats", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if binary is None:
        reason = "there is no nats command; make system installs it where there is Go"
        # Where the whole suite is the gate nothing may be left out unseen.
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)

    async def say(*words: str, status: int = 0) -> str:
        home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
        return await run(binary, *words, status=status, **home)

    return say


async def test_the_nats_command_does_what_the_runbook_says(
    cluster: LocalCluster, nats: Any
) -> None:
    """Each command of deploy/nats-cli.md, and that the log can't be purged by any of them."""
    await nats("context", "add", "dp", "--server", cluster.server.url, "--select")
    cluster.play("gpu-7", 5)
    said = await nats("pub", "dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", '{"games_count":5}')
    assert "Published" in said
    chain = await _new_games(cluster)
    await _looks(nats, chain)
    await _asks(nats)
    for words in (("purge", "DATAPLANE", "-f"), ("rmm", "DATAPLANE", "1", "-f")):
        refused = await nats("stream", *words, status=1)
        assert "deny" in refused or "not permitted" in refused, refused
    assert (await cluster.log.state()).first_sequence == 1


async def _new_games(cluster: LocalCluster) -> str:
    """The chain of what was published by hand, once it has ended."""
    from streams.events import SelfplayComplete

    [fact] = await cluster.facts(SelfplayComplete)
    await cluster.assert_exactly_once(fact.chain)
    return fact.chain


async def _looks(nats: Any, chain: str) -> None:
    """Streams, one chain's history, the consumers, who is there."""
    assert "DATAPLANE" in await nats("stream", "ls", "--names")
    info = json.loads(await nats("stream", "info", "DATAPLANE", "--json"))
    assert info["config"]["deny_purge"] and info["config"]["deny_delete"]
    view = await nats("sub", f"dp.chain.{chain}.>", "--all", "--terminate-at-end")
    assert "NEW_GAMES_AVAILABLE" in view and "DATA_SYNC_COMPLETED" in view
    got = await nats("stream", "get", "DATAPLANE", "--last-for", f"dp.chain.{chain}.>")
    assert "game_count" in got
    assert "bridge" in await nats("consumer", "ls", "DATAPLANE", "--names")
    report = json.loads(await nats("consumer", "info", "DATAPLANE", "bridge", "--json"))
    assert report["num_ack_pending"] == 0
    beats = await nats("kv", "ls", "DP_NODES")
    assert {"agent.gpu-7", "agent.train-1", "coordinator.coord"} <= set(beats.split())
    assert "disk_free_bytes" in await nats("kv", "get", "DP_NODES", "agent.gpu-7", "--raw")


async def _asks(nats: Any) -> None:
    """The coordinators as a service."""
    assert "dataplane" in await nats("service", "ls")
    assert "dp.query.missing" in await nats("service", "info", "dataplane")
    assert "missing" in await nats("service", "stats", "dataplane")
    assert "dataplane" in await nats("service", "ping", "dataplane")
    where = await nats("req", "dp.query.where", '{"path":"games/gpu-7/hex8_2p.db"}', "--raw")
    assert json.loads(where)[0]["copies"] == 2
    health = json.loads(await nats("req", "dp.query.health", "", "--raw"))
    assert health["status"] == "healthy"
