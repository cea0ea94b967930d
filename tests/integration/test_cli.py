"""The ``dataplane`` command as its users run it: a real process, real views, real exit statuses."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streams import events
from streams.codec import node_fact
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer
from streams.values import Role
from tests.integration.cluster import PATIENCE_S, LocalCluster, until
from tests.integration.terminal import Terminal


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    """A cluster that has moved one database and heard one message it can't understand."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 6)
        cluster.log.bus.tell("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":-1}')

        async def rejected() -> bool:
            return bool(await cluster.facts(events.EventRejected))

        await until(rejected, "the rejection")
        yield Terminal(cluster)


async def test_what_goes_on_says_something_at_once_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    """Also while nothing moves; promptly, with the status of an interrupted command."""
    async with LocalCluster(tmp_path) as cluster:
        fact = events.SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=1)
        await cluster.log.publish(node_fact(fact, "gpu-7", "said"))
        going = [await cluster.commanded(*words) for words in (("watch",), ("replay", "--follow"))]
        async with asyncio.timeout(PATIENCE_S):
            for process in going:
                assert process.stdout is not None
                assert await process.stdout.readline()
                process.send_signal(signal.SIGINT)
            assert [await process.wait() for process in going] == [130, 130]


@pytest.mark.timeout(600)
async def test_every_question_has_an_answer_also_while_the_daemon_is_down(
    terminal: Terminal,
) -> None:
    """Publish by command, then ask everything; what reads views works after all were killed."""
    said = terminal.json(
        "publish", "SELFPLAY_COMPLETE", '{"config_key":"hex8_2p","games_count":6}', "--wait", "60"
    )
    assert said["result"]["success"], said
    chain = said["published"]["chain"]
    path = "games/gpu-7/hex8_2p.db"

    # Who has just begun to lead says so, and nobody waits for the next heartbeat.
    await until(
        lambda: terminal.json("status", status=None)["status"] == "healthy", "health", 200.0
    )
    there = {row["node"]: row for row in terminal.json("nodes")}
    assert there["train-1"]["roles"] == ["training"]
    assert there["train-1"]["seen_s_ago"] is not None
    facts = terminal.json("chain", chain)["facts"]
    assert [fact["type"] for fact in facts] == [
        "SELFPLAY_COMPLETE",
        "FILES_OBSERVED",
        "SYNC_PLANNED",
        "DATA_SYNC_STARTED",
        "TRANSFER_ASSIGNED",
        "TRANSFER_SUCCEEDED",
        "DATA_SYNC_COMPLETED",
        "NEW_GAMES_AVAILABLE",
    ]
    ids = {fact["id"] for fact in facts}
    assert all(fact["cause"] in ids for fact in facts[1:]), "each fact's cause is in the chain"
    assert "DATA_SYNC_COMPLETED" in terminal.run("chain", chain)
    timeline = terminal.run("replay", "--json", "--since", "10m").splitlines()
    assert [json.loads(line)["sequence"] for line in timeline] == list(range(1, len(timeline) + 1))
    only = terminal.run("replay", "--type", "NEW_GAMES_AVAILABLE")
    assert only.count("NEW_GAMES_AVAILABLE") == 1
    assert terminal.json("verify")["same"]

    for name in terminal.cluster.processes:
        terminal.cluster.kill(name)
    terminal.cluster.server.kill()
    [entry] = terminal.json("catalog", "ls", "--config-key", "hex8_2p")
    assert (entry["path"], entry["games"]) == (path, 6)
    [entry] = terminal.json("where", path)
    assert entry["locations"] == ["gpu-7", "train-1"]
    assert terminal.json("missing", "train-1", "--type", "games") == []
    assert terminal.json("plans") == []
    [row] = terminal.json("chains")
    assert (row["chain"], row["status"], row["new_games_announced"]) == (chain, "completed", True)
    [wrong] = terminal.json("rejected")
    assert "$.games_count" in wrong["reason"]
    assert terminal.json("status", status=1)["status"] == "unhealthy"
    assert "can't be reached" in terminal.run("status", status=1)


async def test_what_was_rejected_is_said_again_once_it_can_be_understood(
    terminal: Terminal,
) -> None:
    """By the command; and what the bus noticed meanwhile is listed."""
    cluster = terminal.cluster
    said = ("publish", "SELFPLAY_COMPLETE", '{"config_key":"hex8_2p","games_count":6}')
    assert terminal.json(*said, "--wait", "60")["result"]["success"]
    [row] = terminal.json("rejected")
    refusal = terminal.run("rejected", "retry", str(row["sequence"]), status=2)
    assert "games_count" in refusal

    deliveries = await cluster.log.consume("exporter", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    await (await anext(aiter(deliveries))).nak()

    def noticed() -> bool:
        rows = terminal.json("advisories")
        return any(one["consumer"] == "exporter" and "MSG_NAKED" in one["what"] for one in rows)

    await until(noticed, "the refusal to be listed")
    waiting = terminal.json("status", status=None)["details"]["consumers"]
    assert waiting["exporter"]["waiting"] + waiting["exporter"]["unacknowledged"] > 0


async def test_machine_without_views_is_answered_by_a_coordinator(
    terminal: Terminal, tmp_path: Path
) -> None:
    """Row by row the same as on its machine; with --nats also where there are other views."""
    said = ("publish", "SELFPLAY_COMPLETE", '{"config_key":"hex8_2p","games_count":6}')
    assert terminal.json(*said, "--wait", "60")["result"]["success"]
    path, url = "games/gpu-7/hex8_2p.db", terminal.cluster.url
    laptop = Terminal(terminal.cluster, DATAPLANE_STATE_DIR=str(tmp_path / "laptop"))
    # On a machine of another cluster, whose bus is what its configuration names.
    async with LocalCluster(tmp_path / "other") as other:
        other.coordinator()
        await other.joined("coord")
        stranger = Terminal(other)
        asked = [
            ("catalog", "ls"),
            ("where", path),
            ("missing", "train-1"),
            ("plans",),
            ("chains",),
            ("links",),
            ("trainings",),
        ]
        for words in asked:
            wanted = terminal.json(*words)
            assert _timeless(laptop.json(*words)) == _timeless(wanted), words
            assert _timeless(stranger.json("--nats", url, *words)) == _timeless(wanted), words
        assert stranger.json("catalog", "ls") == []
        assert "gpu-7" in stranger.run("--nats", url, "nodes")
    assert {row["node"] for row in laptop.json("nodes")} == {"gpu-7", "train-1"}
    assert laptop.json("status", status=None)["details"]["leader"] == "coordinator.coord"
    assert laptop.json("why", path, "train-1")["there"]
    assert "nobody holds games/none.db" in laptop.run("where", "games/none.db", status=1)
    assert "node 'gpu-77' never joined; known: gpu-7, train-1" in laptop.run(
        "missing", "gpu-77", status=2
    )

    terminal.cluster.kill("coord")
    text = " ".join(laptop.run("where", path, status=3).split())
    assert "no views at" in text
    assert "no coordinator answers" in text


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what grows with time."""
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "_at"))} for row in rows]


async def test_verify_against_another_log_says_so_and_ends(
    terminal: Terminal, tmp_path: Path
) -> None:
    """Views of one log beside the bus of another: a clear text, not a wait for what never comes."""
    server = EmbeddedServer(tmp_path / "other")
    server.start()
    try:
        other = await JetStreamLog.connect(server.url)
        await other.ensure_topology()
        await other.close()
        assert "or another log" in terminal.run("--nats", server.url, "verify", status=2)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["publish", "SELFPLAY_DONE"], 2, "SELFPLAY_COMPLETE"),
        (["publish", "SYNC_PLANNED"], 2, "can't be published"),
        (["publish", "SELFPLAY_COMPLETE", '{"games_count":"x"}'], 2, "$.games_count"),
        (["publish", "SELFPLAY_COMPLETE", '{"games_count":3}'], 2, "config_key"),
        (["publish", "SELFPLAY_COMPLETE", "{"], 2, "payload of SELFPLAY_COMPLETE"),
        (["replay", "--type", "NOPE"], 2, "SELFPLAY_COMPLETE"),
        (["replay", "--since", "yesterday-ish"], 2, "--since"),
        (["--config", "nowhere.toml", "chains"], 2, "nowhere.toml"),
        (["--state-dir", "empty", "chains"], 3, "has a coordinator run"),
        (["--nats", "nats://127.0.0.1:1", "replay"], 3, "127.0.0.1:1"),
        (["--nats", "foo", "replay"], 2, "--nats: 'foo' is no URL like nats://10.0.0.1:4222"),
        (["agent", "--node", "a b"], 2, "--node: node 'a b' must be"),
        (["agent", "--roles", "trainer"], 2, "--roles: Invalid enum value 'trainer'"),
        (["chains", "--last", "-1"], 2, "--last"),
        (["watch", "--seconds", "-1"], 2, "--seconds"),
        (["import", "nowhere.jsonl"], 2, "PATH nowhere.jsonl: there is no such file"),
        (["--state-dir", "/dev/null/x", "chains"], 3, "no views at /dev/null/x"),
        (["catalog", "ls", "--type", "movies"], 2, "npz"),
    ],
)
def test_wrong_call_says_which_word_is_wrong(
    tmp_path: Path, words: list[str], status: int, text: str
) -> None:
    """A wrong call ends at once with its status and names the field, file or rule."""
    done = subprocess.run(
        [sys.executable, "-m", "dataplane", *words],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "DATAPLANE_NODE": "gpu-7"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_command_quietly_before_it_has_loaded_anything(tmp_path: Path) -> None:
    """With the status of an interrupted command, also where what loads would not let it through."""
    # What a descriptor raises while its class is made comes out of it as another error.
    (tmp_path / "lmdb.py").write_text(
        "import os, signal\n"
        "class Interrupted:\n"
        "    def __set_name__(self, owner, name):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "class Loading:\n"
        "    it = Interrupted()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "dataplane", "status"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_init_writes_a_configuration_that_can_be_read(tmp_path: Path) -> None:
    """``dataplane init`` writes it once, and every line of it holds when it is uncommented."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dataplane", *words],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert run("init").returncode == 0
    again = run("init")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run("chains").returncode == 3


def test_committed_schema_is_the_one_of_the_code() -> None:
    """``dataplane schema`` prints what is committed: a change of the wire is seen in review."""
    done = subprocess.run(
        [sys.executable, "-m", "dataplane", "schema"], capture_output=True, text=True, check=True
    )
    committed = Path(__file__).parents[1] / "schema.json"
    assert json.loads(done.stdout) == json.loads(committed.read_text()), (
        "python -m dataplane schema > tests/schema.json"
    )
