"""What knows nothing of this code: a client in Node.js. The ``nats`` command is `test_nats_cli`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

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
