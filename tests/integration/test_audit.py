"""Looking at the past by command: the live log, an archive and a file say the same."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streams import events
from streams.values import Role
from tests.integration.cluster import LocalCluster, digest, until
from tests.integration.terminal import Terminal


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    """A cluster of a coordinator, a player and a trainer."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        yield Terminal(cluster)


def played(terminal: Terminal, games: int) -> str:
    """Play, say so, and wait for the chain's end; its id."""
    terminal.cluster.play("gpu-7", games)
    payload = json.dumps({"config_key": "hex8_2p", "games_count": games})
    said = terminal.json("publish", "SELFPLAY_COMPLETE", payload, "--wait", "60")
    assert said["result"]["success"], said
    chain: str = said["published"]["chain"]
    return chain


def own(chain: dict[str, str]) -> bool:
    """Whether it is a chain of ours: a sweep may have opened others meanwhile."""
    return chain["trigger"] == "SELFPLAY_COMPLETE"


async def test_the_past_can_be_asked_what_the_present_is(terminal: Terminal) -> None:
    """Between two chains: what was where then, what changed since, and where the time went."""
    path = "games/gpu-7/hex8_2p.db"
    first = played(terminal, 6)
    between = str((await terminal.cluster.log.state()).last_sequence)
    second = played(terminal, 4)

    [now] = terminal.json("where", path)
    [then] = terminal.json("at", between, "where", path)
    assert (then["games"], now["games"]) == (6, 10)
    assert then["checksum"] != now["checksum"]
    assert "nobody holds" in terminal.run("at", "#1", "where", path, status=1)
    assert [row["chain"] for row in terminal.json("at", between, "chains") if own(row)] == [first]
    assert {row["node"] for row in terminal.json("at", between, "nodes")} == {"gpu-7", "train-1"}
    assert terminal.json("at", between, "plans") == []
    assert terminal.json("at", between, "missing", "train-1") == []
    assert [row["path"] for row in terminal.json("at", between, "catalog")] == [path]

    changed = terminal.json("diff", between, "0s")
    assert {(c["section"], c["change"]) for c in changed} >= {
        ("catalog", "added"),
        ("catalog", "removed"),
        ("chains", "added"),
    }
    assert [
        c["key"] for c in changed if c["section"] == "chains" and own(c["after"] or c["before"])
    ] == [second]
    assert "status: completed" in terminal.run("diff", between, "0s")
    assert terminal.json("diff", between, between) == []

    lines = terminal.run("replay", "--until", between, "--json").splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, int(between) + 1))
    tail = terminal.run("replay", "--since", between, "--json").splitlines()
    assert json.loads(tail[0])["sequence"] == int(between)

    told = terminal.run("chain", second)
    assert "TRANSFER_ASSIGNED → TRANSFER_SUCCEEDED" in told
    assert "gpu-7" in terminal.run("chain", second, "--tree")
    assert terminal.json("verify")["same"]


async def test_a_lost_bus_comes_back_from_its_archive_and_the_work_goes_on(
    terminal: Terminal, tmp_path: Path
) -> None:
    """Archive, lose the server's disk, restore: no chain ends twice, and the next one completes.

    Then an older backup is restored under views that are ahead of it.
    """
    cluster, place = terminal.cluster, str(tmp_path / "archive")
    chains = [played(terminal, 3)]
    assert terminal.json("archive", "run", "--at", place)["messages"] > 0
    older = shutil.copytree(place, tmp_path / "older")
    chains.append(played(terminal, 3))
    last = terminal.json("archive", "run", "--at", place)["last_sequence"]
    assert terminal.json("archive", "verify", "--at", place)["last_sequence"] == last
    said = terminal.run("replay", "--json")
    assert said == terminal.run("replay", "--from", place, "--json")
    assert "empty bus only" in terminal.run("archive", "restore", "--at", place, status=1)

    await lose_the_bus(cluster)
    assert terminal.json("archive", "restore", "--at", place)["last_sequence"] == last
    assert said == terminal.run("replay", "--json")
    await start_again(cluster)
    chains.append(played(terminal, 3))
    assert terminal.json("verify")["same"]
    await ended_once(cluster, chains)

    await lose_the_bus(cluster)
    state = terminal.json("archive", "restore", "--at", str(older))
    assert state["last_sequence"] < last
    await start_again(cluster)
    # What the nodes hold and the older log does not know is found again and said anew.
    chains = [chains[0], played(terminal, 3)]
    assert terminal.json("verify")["same"]
    await ended_once(cluster, chains)
    [entry] = terminal.json("where", "games/gpu-7/hex8_2p.db")
    assert (entry["games"], entry["locations"]) == (12, ["gpu-7", "train-1"])


async def lose_the_bus(cluster: LocalCluster) -> None:
    """Stop everything, and the server's disk is gone."""
    for name in cluster.processes:
        cluster.kill(name)
    cluster.server.kill()
    shutil.rmtree(cluster.server.store_dir / "jetstream", ignore_errors=True)
    shutil.rmtree(cluster.base / "nats", ignore_errors=True)
    cluster.server.start()
    await until(lambda: cluster.log.connected, "the bus to come back")


async def start_again(cluster: LocalCluster) -> None:
    """The same processes, with what they have on their disks."""
    await cluster.log.ensure_topology()
    cluster.coordinator()
    cluster.agent("gpu-7", Role.SELFPLAY)
    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("coord", "gpu-7", "train-1")


async def ended_once(cluster: LocalCluster, chains: list[str]) -> None:
    """These chains have ended, and no chain more than once; a sweep may have opened others."""
    found = await cluster.facts(events.DataSyncCompleted, events.DataSyncFailed)
    ends = Counter(fact.chain for fact in found)
    assert set(chains) <= ends.keys()
    assert set(ends.values()) == {1}


async def test_a_drained_node_can_be_killed_without_losing_a_byte(terminal: Terminal) -> None:
    """No while bytes are only there or a copy is rotten; yes is proven, and holds after a kill."""
    cluster = terminal.cluster
    cluster.play("gpu-7", 8)
    cluster.kill("train-1")
    unsafe = terminal.json("drain", "gpu-7", status=1)
    assert not unsafe["may_go"]
    assert [left["path"] for left in unsafe["left"]] == ["games/gpu-7/hex8_2p.db"]
    assert unsafe["bytes_left"] > 0

    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("train-1")
    answer = terminal.json("drain", "gpu-7", "--wait", "--deadline", "20m")
    assert answer["may_go"], answer
    assert {row["node"]: row["leaving"] for row in terminal.json("nodes")} == {
        "gpu-7": True,
        "train-1": False,
    }
    assert "may gpu-7 be killed now? yes" in terminal.run("drain", "gpu-7")

    copy = cluster.received("train-1", "gpu-7")
    sound = copy.read_bytes()
    copy.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert not terminal.json("drain", "gpu-7", status=1)["may_go"]
    copy.write_bytes(sound)
    await until(lambda: drained(terminal), "the mended copy to be proven")

    held = {
        row["path"]: row["checksum"] for row in terminal.json("catalog", "ls", "--node", "gpu-7")
    }
    cluster.kill("gpu-7")
    shutil.rmtree(cluster.base / "gpu-7")
    assert held
    for path, checksum in held.items():
        assert digest(cluster.base / "train-1" / "data" / path) == checksum


# A dozen processes, one after the other.
@pytest.mark.timeout(300)
async def test_a_drain_is_asked_for_hurried_and_taken_back(terminal: Terminal) -> None:
    """Who asks begins nothing; an earlier deadline reaches the plan; what is taken back ends."""
    cluster = terminal.cluster
    played(terminal, 6)
    safe = terminal.json("drain", "gpu-7", "--ask", status=1)
    assert (safe["left"], safe["bytes_left"], safe["chain"]) == ([], 0, "")
    assert "gpu-7 is not said to go" in safe["reason"]
    assert "has just looked" in safe["rests_on"] and "again just now" in safe["rests_on"]

    cluster.kill("train-1")
    cluster.play("gpu-7", 8)
    asked: dict[str, Any] = {}

    def told() -> bool:
        asked.update(terminal.json("drain", "gpu-7", "--ask", status=1))
        # Before that, who was killed can't prove what it held.
        return bool(asked["left"]) and "the log" in asked["rests_on"]

    await until(told, "what only the node holds to be known")
    assert asked["bytes_left"] > 0
    assert await cluster.facts(events.NodeTerminating) == []

    slow = terminal.json("drain", "gpu-7", "--deadline", "20m", status=1)
    same = terminal.json("drain", "gpu-7", "--deadline", "30m", status=1)
    assert (same["chain"], same["deadline"]) == (slow["chain"], slow["deadline"])
    fast = terminal.json("drain", "gpu-7", "--deadline", "10m", status=1)
    assert fast["chain"] != slow["chain"] and fast["deadline"] < slow["deadline"] - 500

    def hurried() -> bool:
        return {row["deadline"] for row in terminal.json("plans")} == {fast["deadline"]}

    await until(hurried, "the earlier deadline to reach what waits")

    stays = terminal.json("drain", "gpu-7", "--cancel")
    assert stays == {"node": "gpu-7", "cancelled": True, "reason": stays["reason"]}
    ends = [(await cluster.ended(id)).event for id in (slow["chain"], fast["chain"])]
    for end in ends:
        assert isinstance(end, events.DataSyncFailed)
        assert end.reason.startswith("gpu-7 stays after all")

    def stayed() -> bool:
        return not any(row["leaving"] for row in terminal.json("nodes"))

    await until(stayed, "the views to know it")
    text = terminal.run("drain", "gpu-7", "--cancel", status=1)
    assert "nothing says that gpu-7 is to go" in text
    assert "begins nothing" in terminal.run("drain", "gpu-7", "--ask", "--wait", status=2)

    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("train-1")
    assert drained(terminal)
    sure = terminal.json("drain", "gpu-7", "--ask")
    assert (sure["may_go"], sure["left"]) == (True, [])
    assert [fact.chain for fact in await cluster.facts(events.NodeDrainCancelled)] == [""]


async def test_who_no_longer_waits_for_a_drain_stops_nothing(terminal: Terminal) -> None:
    """Ctrl-C ends the waiting, says so, and leaves the node being emptied."""
    cluster = terminal.cluster
    cluster.play("gpu-7", 8)
    cluster.kill("train-1")
    with terminal.started("drain", "gpu-7", "--wait") as waiting:
        await until(lambda: said_to_go(cluster), "the node to be said to go")
        waiting.send_signal(signal.SIGINT)
        text, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, text
    assert "gpu-7 is being emptied all the same" in text
    assert "Traceback" not in text

    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("train-1")
    await until(lambda: has_copy(cluster), "the games to leave by themselves")
    assert drained(terminal)


async def said_to_go(cluster: LocalCluster) -> bool:
    """Whether the log has it, and what follows from it."""
    said = await cluster.log.last("dp.node.gpu-7.NODE_TERMINATING.>")
    if said is None:
        return False
    return await cluster.log.last(f"dp.chain.{said.chain}.SYNC_PLANNED.>") is not None


async def has_copy(cluster: LocalCluster) -> bool:
    """Whether the trainer has the player's games."""
    return cluster.received("train-1", "gpu-7").exists()


def drained(terminal: Terminal) -> bool:
    """Whether the command says yes."""
    try:
        return bool(terminal.json("drain", "gpu-7", "--wait")["may_go"])
    except AssertionError:
        return False
