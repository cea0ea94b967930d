"""Questions over the bus: found and answered as any NATS client would, errors as service errors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest

from dataplane.queries import QUERIES
from streams.codec import fact_id, node_fact
from streams.events import HostOffline, SelfplayComplete
from streams.values import Role
from tests.integration.cluster import LocalCluster, until

ERROR, CODE = "Nats-Service-Error", "Nats-Service-Error-Code"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Two coordinators, a player and a trainer, joined; one chain has ended."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator("coord-1")
        cluster.coordinator("coord-2")
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord-1", "coord-2", "gpu-7", "train-1")
        cluster.play("gpu-7", 5)
        played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
        await cluster.log.publish(node_fact(played, "gpu-7", fact_id("played")))
        await cluster.ended(fact_id("played"))
        yield cluster


async def test_any_client_finds_the_services_and_asks_them(cluster: LocalCluster) -> None:
    """Discovery, schemas, one answer to each question, and an error where there is none."""
    client = await nats.connect(cluster.server.url)
    try:
        await _both_found(client)
        await _answers(client)
        await _refusals(client)
        await _counted(client)
    finally:
        await client.close()


async def _gather(client: Any, subject: str, count: int) -> list[dict[str, Any]]:
    """So many answers to one question, and no more after them."""
    inbox = client.new_inbox()
    heard = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    answers = [await heard.next_msg(timeout=30) for _ in range(count)]
    with pytest.raises(nats.errors.TimeoutError):
        await heard.next_msg(timeout=0.3)
    return [msgspec.json.decode(answer.data) for answer in answers]


async def _both_found(client: Any) -> None:
    infos = await _gather(client, "$SRV.INFO.dataplane", 2)
    assert {info["metadata"]["node"] for info in infos} == {"coord-1", "coord-2"}
    for info in infos:
        endpoints = {endpoint["name"]: endpoint for endpoint in info["endpoints"]}
        assert set(endpoints) == set(QUERIES)
        for endpoint in endpoints.values():
            assert msgspec.json.decode(endpoint["metadata"]["request_schema"])["$ref"]
            assert msgspec.json.decode(endpoint["metadata"]["response_schema"])


async def _answers(client: Any) -> None:
    """Of two coordinators one answers."""
    [where] = await _gather_one(client, "where", {"path": "games/gpu-7/hex8_2p.db"})
    assert (where["copies"], where["games"]) == (2, 5)
    await until(lambda: _is_well(client), "the coordinators to be well")
    assert [node["node"] for node in await _ask(client, "nodes", {})] == ["gpu-7", "train-1"]
    assert await _ask(client, "missing", {"node": "train-1"}) == []
    assert await _ask(client, "plans", {}) == []
    assert await _ask(client, "pending", {"transfers": ["nobody-knows-it"]}) == []
    asked = {"transfers": ["nobody-knows-it"], "executor": "gpu-7", "sequence": 1}
    assert await _ask(client, "pending", asked) == []
    assert await _ask(client, "rejected", {}) == []
    said = await client.jetstream().publish("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b"no JSON")
    await until(lambda: _ask(client, "rejected", {}), "what nobody understands to be told")
    [rejected] = await _ask(client, "rejected", {"sequence": said.seq})
    assert "JSON is malformed" in rejected["reason"]
    [chain] = await _ask(client, "chains", {"config_key": "hex8_2p"})
    assert (chain["status"], chain["games"]) == ("completed", 5)


async def _is_well(client: Any) -> bool:
    return bool((await _ask(client, "health", {}))["status"] == "healthy")


async def _gather_one(client: Any, name: str, question: dict[str, Any]) -> Any:
    inbox = client.new_inbox()
    heard = await client.subscribe(inbox)
    await client.publish(f"dp.query.{name}", msgspec.json.encode(question), reply=inbox)
    answer = await heard.next_msg(timeout=30)
    with pytest.raises(nats.errors.TimeoutError):
        await heard.next_msg(timeout=0.3)
    return msgspec.json.decode(answer.data)


async def _ask(client: Any, name: str, question: dict[str, Any]) -> Any:
    answer = await client.request(f"dp.query.{name}", msgspec.json.encode(question), timeout=30)
    assert not answer.headers, answer.headers
    return msgspec.json.decode(answer.data)


async def _refusals(client: Any) -> None:
    """What can't be answered comes back with a code and a text, never as an empty answer."""
    for name, body, code, text in (
        ("missing", b'{"node":"gpu-9"}', "404", "never joined; known: gpu-7, train-1"),
        ("missing", b"{}", "400", "missing required field `node`"),
        ("where", b'{"path":"games/x.db"}', "404", "nobody holds"),
        ("rejected", b'{"sequence":1}', "404", "message 1 was neither rejected nor set aside"),
        ("pending", b'{"transfers":[],"sequence":1000000}', "503", "far behind the log"),
        ("where", b'{"pth":"games/x.db"}', "400", "unknown field `pth`"),
        ("health", b"not json", "400", "JSON is malformed"),
    ):
        answer = await client.request(f"dp.query.{name}", body, timeout=30)
        assert answer.headers[CODE] == code
        assert text in answer.headers[ERROR]


async def _counted(client: Any) -> None:
    """``nats service stats``: requests and errors of both together."""
    stats = await _gather(client, "$SRV.STATS.dataplane", 2)
    of_missing = [e for s in stats for e in s["endpoints"] if e["name"] == "missing"]
    assert sum(endpoint["num_requests"] for endpoint in of_missing) == 3
    assert sum(endpoint["num_errors"] for endpoint in of_missing) == 2


async def test_a_dead_coordinators_questions_are_answered_by_the_other(
    cluster: LocalCluster,
) -> None:
    """After kill -9 the questions go on being answered."""
    client = await nats.connect(cluster.server.url)
    try:
        cluster.kill("coord-1")

        async def one_left() -> bool:
            infos = await client.request("$SRV.PING.dataplane", b"", timeout=30)
            return bool(msgspec.json.decode(infos.data)["metadata"]["node"] == "coord-2")

        await until(one_left, "only coord-2 to answer")
        answers = await asyncio.gather(*(_ask(client, "nodes", {}) for _ in range(5)))
        assert all(len(nodes) == 2 for nodes in answers)
    finally:
        await client.close()


async def test_top_shows_the_cluster_on_any_terminal(cluster: LocalCluster) -> None:
    """Once, into a pipe, from a directory that holds no views: alerts, nodes, chains."""
    await cluster.log.publish(
        node_fact(HostOffline(node="train-1", reason="spot is gone"), "ops", fact_id("off"))
    )

    async def said() -> bool:
        text = await _top(cluster, "--once")
        return "train-1 is out of planning: spot is gone" in text

    await until(said, "the alert on the terminal")
    text = await _top(cluster, "--once")
    assert "1/2 nodes" in text
    assert "SELFPLAY_COMPLETE" in text
    glance = msgspec.json.decode(await _top(cluster, "--json"))
    assert [node["node"] for node in glance["nodes"]] == ["gpu-7", "train-1"]


async def _top(cluster: LocalCluster, *more: str) -> str:
    command = [sys.executable, "-m", "dataplane", "--nats", cluster.server.url, "top", *more]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=cluster.base
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()
