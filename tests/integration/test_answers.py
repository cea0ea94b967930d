"""What the command answers, and with which status: yes, no, a wrong question, nobody to ask."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from dataplane.cli.app import EXIT_STATUS
from projections.fold import TABLES, checkpoint
from projections.store import Store, StoreDirectory
from streams import events
from streams.codec import node_fact
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer
from streams.values import NodeDescription, Role
from tests.integration.cluster import LocalCluster
from tests.integration.terminal import Terminal

PATH = "games/gpu-7/hex8_2p.db"
YES, NO, WRONG, NOBODY = EXIT_STATUS
THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: Commands, their status, and words of their answer.
QUESTIONS = [
    (["why", PATH, "train-1"], YES, "the version that counts"),
    (["why-not", "games/nope.db", "train-1"], YES, "no node ever reported such a file"),
    (["links"], YES, "(as a whole)"),
    (["replay", "--config", "hex8_2p"], YES, "SELFPLAY_COMPLETE"),
    (["why", "games/nope.db", "train-1"], NO, "what train-1 keeps there is games/train-1/nope.db"),
    (["why-not", PATH, "train-1"], NO, "the version that counts"),
    (["drain", "train-1", "--copies", "2"], NO, "may train-1 be killed now? no"),
    (["delete", PATH, "train-1", "--wait", "30"], NO, "kept"),
    (["why", PATH, "train-9"], WRONG, "node 'train-9' never joined; known: gpu-7, train-1"),
    (["missing", "train-9"], WRONG, "node 'train-9' never joined"),
    (["drain", "train-9"], WRONG, "NODE 'train-9' never joined"),
    (["delete", PATH, "train-9"], WRONG, "NODE 'train-9' never joined"),
    (["links", "--node", "train-9"], WRONG, "node 'train-9' never joined"),
    (["chain", "nope"], WRONG, "there is no chain 'nope'"),
    (["replay", "--chain", "nope"], WRONG, "--chain 'nope'"),
    (["at", "#99999", "where", PATH], WRONG, "TIME '#99999': the log ends at"),
    (["at", "2999-01-01", "where", PATH], WRONG, "is still to come"),
    (["diff", "0s", "1h"], WRONG, "T1 '0s' is later than T2 '1h'"),
    (["export", "nowhere/log.jsonl"], WRONG, "there is no directory nowhere"),
    (["--nats", "nats://127.0.0.1:1", "advisories"], NOBODY, "is it running"),
    (["--nats", "nats://127.0.0.1:1", "replay"], NOBODY, "--from reads an archive or a file"),
]


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    """A cluster that has moved one database."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 6)
        terminal = Terminal(cluster)
        payload = '{"config_key":"hex8_2p","games_count":6}'
        words = ("publish", "SELFPLAY_COMPLETE", payload, "--traceparent", THEIRS)
        said = terminal.json(*words, "--wait", "60")
        assert said["result"]["success"], said
        # Whatever follows from a trigger that was said in somebody's trace is in it.
        chain = [f for f in await cluster.facts() if f.chain == said["published"]["chain"]]
        assert len(chain) == 8
        assert {fact.traceparent[:35] for fact in chain} == {THEIRS[:35]}
        yield terminal


# Thirty processes, one after the other.
@pytest.mark.timeout(600)
async def test_each_answer_has_its_status_from_the_one_table(
    terminal: Terminal, tmp_path: Path
) -> None:
    """Yes, no, a wrong question and nobody to ask are told apart, in words and by status.

    An own export is verified like the log itself; an earlier one, and views of another version of
    the program, are refused for what they are. What needs no daemon works when all are killed.
    """
    for words, status, text in QUESTIONS:
        said = terminal.run(*words, status=status)
        assert text in " ".join(said.split()), (words, said)
        assert "Errno" not in said and "{" not in said, said
    assert "{" not in terminal.run("status", status=None)

    payload = '{"config_key":"hex8_2p","source_node":"gpu-9","games_count":1}'
    assert "no node gpu-9 ever joined" in terminal.run("publish", "SELFPLAY_COMPLETE", payload)

    earlier, place = str(tmp_path / "earlier.jsonl"), str(tmp_path / "archive")
    terminal.run("export", earlier, "--until", "#3")
    assert "this log ends at 3" in terminal.run("verify", "--from", earlier, status=WRONG)
    for name in terminal.cluster.processes:
        terminal.cluster.kill(name)
    whole = str(tmp_path / "log.jsonl")
    terminal.run("export", whole)
    assert "the fold of the log" in terminal.run("verify", "--from", whole)
    terminal.run("archive", "run", "--at", place)

    terminal.cluster.server.kill()
    config = tmp_path / "with-archive.toml"
    config.write_text(f'archive = "{place}"')
    for words, text in (
        (["replay", "--type", "NEW_GAMES_AVAILABLE"], "NEW_GAMES_AVAILABLE"),
        (["verify"], "the fold of the log"),
        (["why", PATH, "train-1"], "attempt 1 brought it from gpu-7"),
        (["at", "#3", "chains"], "no chain yet"),
    ):
        said = terminal.run("--config", str(config), *words)
        assert text in said and "read from the archive" in said
    said = terminal.run("top", "--once")
    assert "no coordinator answers" in said and "train-1" in said
    pretend_other_version(tmp_path / "coord" / "state" / "views")
    said = terminal.run("verify", "--from", whole, status=NOBODY)
    assert "folded by another version of this program (catalog 0, here" not in said
    assert "(catalog 999, here" in said


def pretend_other_version(views: Path) -> None:
    """Make the views say that another version of the program wrote them."""
    current = StoreDirectory(views).current()
    assert current is not None
    store = Store.open(current, TABLES)
    with store.read() as reader:
        point = checkpoint(reader)
    other = msgspec.structs.replace(point, versions={**point.versions, "catalog": 999})
    store.write(lambda tx: tx.put("meta", b"checkpoint", msgspec.json.encode(other)))
    store.close()


async def test_the_log_of_this_machines_own_bus_can_be_read_while_nobody_runs_it(
    tmp_path: Path,
) -> None:
    """After ``dataplane up`` was stopped: its store is read where it lies, and nothing is added."""
    server = EmbeddedServer(tmp_path / ".dataplane" / "nats")
    server.start()
    log = await JetStreamLog.connect(server.url)
    await log.ensure_topology()
    joined = events.NodeRegistered(description=NodeDescription(name="solo"))
    await log.publish(node_fact(joined, "solo", "id-1"))
    await log.close()
    server.stop()
    for _ in range(2):
        replay = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dataplane", "replay", "--json"),
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "DATAPLANE_NATS_PORT": str(server.port)},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await replay.communicate()
        assert replay.returncode == YES
        [line] = said.splitlines()
        assert (json.loads(line)["sequence"], json.loads(line)["id"]) == (1, "id-1")


def test_the_readme_has_the_table_of_the_program() -> None:
    """Each status stands in README with what the program says of it."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for code, meaning in EXIT_STATUS.items():
        assert f"| {code} | {meaning} |" in readme
    assert "| 4 |" not in readme
