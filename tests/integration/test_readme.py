"""The README's examples, as they stand there, against a cluster: what a newcomer would paste."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.keys import KeyStore
from streams.jetstream import JetStreamLog
from streams.log import LogError
from streams.server import EmbeddedServer, default_config
from streams.values import Role
from tests.integration.cluster import LocalCluster

README = (Path(__file__).parents[2] / "README.md").read_text()


def example(name: str) -> str:
    """The code block that follows ``<!-- runs: name -->``."""
    found = re.search(rf"<!-- runs: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no example {name!r}"
    return found[1]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """The nodes that the README speaks of, with games played."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 8)
        yield cluster


def run(cluster: LocalCluster, command: list[str]) -> str:
    """Run an example in the coordinator's directory; its output."""
    environment = {
        **os.environ,
        "DATAPLANE_NATS_URL": cluster.server.url,
        "DATAPLANE_STATE_DIR": str(cluster.base / "coord" / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, env=environment, cwd=cluster.base, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_examples_of_the_readme_run(cluster: LocalCluster) -> None:
    """The producer's, the consumer's and the operator's example do what the text says."""
    url = cluster.server.url
    producer = example("producer").replace("nats://127.0.0.1:4222", url)
    assert "8 games" in run(cluster, [sys.executable, "-c", producer])
    consumer = example("consumer").replace("nats://127.0.0.1:4222", url)
    said = run(cluster, [sys.executable, "-c", consumer])
    assert "8 games in ('games/gpu-7/hex8_2p.db',)" in said
    operator = "set -e\n" + example("operator")
    said = run(cluster, ["sh", "-c", operator])
    for words in ("healthy", "train-1 has all", "gpu-7, train-1", "the fold of the log"):
        assert words in said
    # Of a node that is not to go the answer is no, whatever was read elsewhere: status 1.
    auditor = example("auditor").replace("drain gpu-7 --ask ", "drain gpu-7 --ask || test $? = 1 ")
    said = run(cluster, ["sh", "-c", "set -e\n" + auditor])
    assert "killed now? no" in said
    for words in ("catalog  games/gpu-7/hex8_2p.db", "is whole", "killed now? yes"):
        assert words in said


def _linked(page: Path) -> set[Path]:
    """The files and directories that a page leads to."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    return {(page.parent / link).resolve() for link in links}


def test_the_readme_leads_to_all_that_an_installation_needs() -> None:
    """Every link is there, and every file of deploy/ can be reached by them."""
    root = Path(__file__).parents[2]
    found, pages = _linked(root / "README.md"), [root / "deploy" / "README.md"]
    assert pages[0] in found
    found |= {link for page in pages for link in _linked(page)}
    assert [link for link in found if not link.exists()] == []
    reached = {file for link in found for file in (link, *link.rglob("*")) if file.is_file()}
    needed = {file for file in (root / "deploy").rglob("*") if file.is_file()}
    assert needed - reached == set()


async def test_who_has_a_key_of_the_readme_gets_in_until_it_is_revoked(tmp_path: Path) -> None:
    """nats-server lets in whoever the block makes a key for, but not the one it takes away."""
    made, revoke, rest = example("keys").partition("dataplane keys revoke")
    said = run_in(tmp_path, made)
    keys = KeyStore(tmp_path / "keys")
    brought = shutil.copy(keys.seed_file("gpu-7"), tmp_path / "on-its-machine.seed")
    said += run_in(tmp_path, revoke + rest)
    for words in ("node gpu-7: its key is in", "observer grafana", "gpu-7 is out", "may do as of"):
        assert words in " ".join(said.split()), said
    conf = tmp_path / "nats.conf"
    conf.write_text(f'{default_config().read_text()}\ninclude "keys/users.conf"\n')
    server = EmbeddedServer(tmp_path / "nats", config=conf)
    await server.start_async()
    try:
        assert await lets_in(server.url, "coordinator", keys.seed_file("coordinator"))
        assert await lets_in(server.url, "grafana", keys.seed_file("grafana"))
        assert not await lets_in(server.url, "gpu-7", brought)
        assert not await lets_in(server.url, "gpu-7", None)
    finally:
        await server.stop_async()


def run_in(directory: Path, script: str) -> str:
    """Run a part of an example where there is nothing yet; its output."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sh", "-c", "set -e\n" + script]
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def lets_in(url: str, name: str, seed: Path | None) -> bool:
    """Whether the bus takes somebody with this key, or with none."""
    try:
        log = await JetStreamLog.connect(url, name=name, nkey_seed_file=seed, deadline_s=10.0)
    except LogError:
        return False
    await log.close()
    return True


def test_every_command_of_the_readme_exists() -> None:
    """Each ``dataplane`` command that the text names is one of the program."""
    named = set(re.findall(r"^(?: {4})?dataplane ([a-z]+)", README, re.MULTILINE))
    named |= set(re.findall(r"`dataplane ([a-z]+)", README))
    assert {"up", "init", "status"} <= named
    said = subprocess.run(
        [sys.executable, "-m", "dataplane", "--help"], capture_output=True, text=True, check=True
    )
    commands = set(re.findall(r"^\W*([a-z]+) ", said.stdout, re.MULTILINE))
    assert named <= commands, named - commands
