"""The guarantee on real processes: kill any of them at each point, and every chain ends once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane import DataPlane, DataType, SelfplayComplete
from dataplane.demo import gamedb
from dataplane.policy import Bandwidth
from streams import events
from streams.values import Role
from tests.integration.cluster import LocalCluster, digest, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A bus, nothing else yet."""
    async with LocalCluster(tmp_path) as cluster:
        yield cluster


async def say(cluster: LocalCluster, node: str = "gpu-7", games: int = 500) -> str:
    """Publish SELFPLAY_COMPLETE; the chain it opens."""
    async with DataPlane.connect(cluster.server.url, node=node, outbox=cluster.base / "out") as dp:
        event = SelfplayComplete(config_key="hex8_2p", source_node=node, games_count=games)
        return (await dp.publish(event)).chain


async def trio(cluster: LocalCluster) -> None:
    """A coordinator, a player and a trainer."""
    cluster.coordinator()
    cluster.agent("gpu-7", Role.SELFPLAY)
    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("coord", "gpu-7", "train-1")


async def test_selfplay_reaches_every_training_node(cluster: LocalCluster) -> None:
    """One trigger: byte-identical copies on both trainers, counted in the file, announced once."""
    await trio(cluster)
    cluster.agent("train-2", Role.TRAINING)
    await cluster.joined("train-2")
    cluster.play("gpu-7", 25)
    chain = await say(cluster, games=999)
    end = await cluster.assert_exactly_once(chain)
    assert {outcome.target for outcome in end.targets} == {"train-1", "train-2"}
    assert end.games_synced == 25, "counted in the arrived file, not taken from the trigger"
    copy = cluster.received("train-1", "gpu-7")
    assert gamedb.count_games(copy) == 25
    assert end.bytes_transferred == 2 * copy.stat().st_size
    [announced] = await cluster.facts(events.NewGamesAvailable)
    assert announced.event == events.NewGamesAvailable(
        config_key="hex8_2p",
        game_count=25,
        source_node="gpu-7",
        targets=("train-1", "train-2"),
        paths=("games/gpu-7/hex8_2p.db",),
    )


AGENT_POINTS = [
    ("gpu-7", Role.SELFPLAY, "agent.observed"),
    ("train-1", Role.TRAINING, "agent.fetching"),
    ("train-1", Role.TRAINING, "agent.gathered"),
    ("train-1", Role.TRAINING, "agent.landed"),
    ("train-1", Role.TRAINING, "agent.reported"),
]


@pytest.mark.parametrize(("name", "role", "point"), AGENT_POINTS)
async def test_p1_agent_killed_at_any_point_breaks_no_chain(
    cluster: LocalCluster, name: str, role: Role, point: str
) -> None:
    """An agent dies at the point, comes back, and the chain ends exactly once."""
    cluster.coordinator()
    others = {"gpu-7": Role.SELFPLAY, "train-1": Role.TRAINING}
    del others[name]
    for other, other_role in others.items():
        cluster.agent(other, other_role)
    cluster.agent(name, role)
    await cluster.joined("coord", "gpu-7", "train-1")
    cluster.play("gpu-7", 12)
    cluster.kill(name)
    cluster.agent(name, role, DATAPLANE_KILL_AT=point)
    chain = await say(cluster)
    await cluster.died(name)
    cluster.agent(name, role)
    end = await cluster.assert_exactly_once(chain)
    assert end.games_synced == 12
    assert end.bytes_transferred == cluster.received("train-1", "gpu-7").stat().st_size


@pytest.mark.parametrize("point", ["agent.gathered", "agent.landed", "agent.reported"])
async def test_a_chain_of_many_small_files_ends_once_whoever_dies_among_them(
    cluster: LocalCluster, point: str
) -> None:
    """They share slots, come in groups, and each is whole and counted once after kill -9."""
    await trio(cluster)
    cluster.kill("train-1")
    cluster.agent("train-1", Role.TRAINING, DATAPLANE_KILL_AT=f"{point}:2")
    played = cluster.base / "gpu-7" / "data" / "games"
    played.mkdir(parents=True, exist_ok=True)
    for number in range(250):
        line = b'{"moves": "%s"}\n' % os.urandom(200).hex().encode()
        (played / f"hex8_2p_{number:03}.jsonl").write_bytes(line * 20)
    chain = await say(cluster, games=5_000)
    await cluster.died("train-1")
    received = cluster.base / "train-1" / "data" / "games" / "gpu-7"
    for file in received.glob("*.jsonl"):
        assert file.read_bytes() == (played / file.name).read_bytes()
    cluster.agent("train-1", Role.TRAINING)
    end = await cluster.assert_exactly_once(chain)
    files = sorted(played.glob("*.jsonl"))
    assert [file.read_bytes() for file in sorted(received.glob("*.jsonl"))] == [
        file.read_bytes() for file in files
    ]
    assert end.bytes_transferred == sum(file.stat().st_size for file in files)
    kinds = (events.TransferAssigned, events.TransferSucceeded)
    flying = [isinstance(fact.event, kinds[0]) for fact in await cluster.facts(*kinds)]
    most = max(2 * sum(flying[:n]) - n for n in range(len(flying)))
    assert Bandwidth().max_per_node < most <= len(files)


async def test_p6_agent_killed_mid_file_goes_on_from_there(tmp_path: Path) -> None:
    """kill -9 in the middle of a file: nothing under the final name, then the rest only."""
    async with LocalCluster(tmp_path, default_bandwidth_limit_mbps=80) as cluster:
        await trio(cluster)
        cluster.play("gpu-7", 12, padding=12_000_000)
        chain = await say(cluster)
        partials = tmp_path / "train-1" / "data" / ".dataplane" / "partial"

        def some_bytes() -> int:
            return sum(file.stat().st_blocks * 512 for file in partials.glob("*.partial"))

        await until(lambda: some_bytes() > 2_000_000, "a partial to grow")
        cluster.kill("train-1")
        assert not cluster.received("train-1", "gpu-7").exists()
        before = some_bytes()
        cluster.agent("train-1", Role.TRAINING)
        end = await cluster.assert_exactly_once(chain)
        size = cluster.received("train-1", "gpu-7").stat().st_size
        assert end.bytes_transferred <= size - before + 1_000_000


COORDINATOR_POINTS = ["coordinator.decided", "coordinator.appended", "coordinator.admitted"]


@pytest.mark.parametrize("point", COORDINATOR_POINTS)
async def test_p1_coordinator_killed_at_any_point_breaks_no_chain(
    cluster: LocalCluster, point: str
) -> None:
    """A coordinator dies between decide, append, assign and ack; the next one goes on."""
    await trio(cluster)
    cluster.play("gpu-7", 12)
    cluster.kill("coord")
    chain = await say(cluster)
    cluster.coordinator(DATAPLANE_KILL_AT=point)
    await cluster.died("coord")
    cluster.coordinator()
    await cluster.assert_exactly_once(chain)


async def test_p1_killed_bus_loses_nothing(cluster: LocalCluster) -> None:
    """nats-server is killed with chains under way and started again on its log."""
    await trio(cluster)
    chains = []
    for _ in range(4):
        cluster.play("gpu-7", 5)
        chains.append(await say(cluster))
    cluster.server.kill()
    await cluster.server.start_async()
    ends = [await cluster.ended(chain) for chain in chains]
    assert all(isinstance(end.event, events.DataSyncCompleted) for end in ends)
    finished = await cluster.facts(events.DataSyncCompleted, events.DataSyncFailed)
    assert sorted(end.chain for end in finished) == sorted(chains)
    triggers = await cluster.facts(events.SelfplayComplete)
    assert sorted(fact.chain for fact in triggers) == sorted(chains)


async def test_p11_deleted_views_come_back_with_all_that_was_pending(
    cluster: LocalCluster,
) -> None:
    """The views are deleted with a transfer pending; refolded, the chain completes."""
    await trio(cluster)
    cluster.play("gpu-7", 12)
    cluster.kill("train-1")
    chain = await say(cluster)

    async def assigned() -> bool:
        return bool(await cluster.facts(events.TransferAssigned))

    await until(assigned, "the transfer to be assigned")
    cluster.kill("coord")
    shutil.rmtree(cluster.base / "coord" / "state" / "views")
    cluster.coordinator()
    cluster.agent("train-1", Role.TRAINING)
    await cluster.assert_exactly_once(chain)


async def test_agent_says_that_it_has_joined(cluster: LocalCluster) -> None:
    """Whoever starts one by hand sees that the bus has it, and where its files are served."""
    cluster.coordinator()
    cluster.agent("gpu-7", Role.SELFPLAY)
    await cluster.joined("coord", "gpu-7")
    await until(lambda: "gpu-7 has joined; " in cluster.said("gpu-7"), "the agent to say so")


async def test_coordinator_whose_views_are_removed_ends_and_folds_anew(
    cluster: LocalCluster,
) -> None:
    """It says why, for what it folds on nobody can read; started again it has them all."""
    process = cluster.coordinator()
    cluster.agent("gpu-7", Role.SELFPLAY)
    await cluster.joined("coord", "gpu-7")
    shutil.rmtree(cluster.base / "coord" / "state" / "views")
    await until(lambda: process.poll() is not None, "the coordinator to end")
    assert "the views were removed from" in cluster.said("coord")
    cluster.coordinator()
    await cluster.joined("coord")
    assert "gpu-7" in await cluster.command("nodes")


async def test_target_that_stays_away_fails_the_chain_by_name(tmp_path: Path) -> None:
    """DATA_SYNC_FAILED names the target; asked again when it is back, the sync completes."""
    async with LocalCluster(tmp_path, transport_timeout_seconds=2) as cluster:
        await trio(cluster)
        cluster.agent("train-2", Role.TRAINING)
        await cluster.joined("train-2")
        cluster.play("gpu-7", 12)
        cluster.kill("train-2")
        chain = await say(cluster)
        end = (await cluster.ended(chain)).event
        assert isinstance(end, events.DataSyncFailed)
        assert [outcome.target for outcome in end.arrived] == ["train-1"]
        [failed] = end.failed
        assert failed.target == "train-2"
        assert "train-2 gave no result" in failed.error
        cluster.agent("train-2", Role.TRAINING)
        await cluster.joined("train-2")
        async with DataPlane.connect(cluster.server.url, node="op", outbox=tmp_path / "o") as dp:
            handle = await dp.request_sync(DataType.GAMES, "hex8_2p", ["train-2"])
            result = await handle.wait(timeout=60)
        assert result.success, result
        copy = cluster.received("train-2", "gpu-7")
        assert digest(copy) == result.targets[0].checksum


async def test_two_coordinators_double_nothing(cluster: LocalCluster) -> None:
    """Two coordinators on one log: each chain is planned, assigned and ended once."""
    await trio(cluster)
    cluster.coordinator("coord-2")
    await cluster.joined("coord-2")
    chains = []
    for _ in range(12):
        cluster.play("gpu-7", 2)
        chains.append(await say(cluster))
    for chain in chains:
        assert isinstance((await cluster.ended(chain)).event, events.DataSyncCompleted)
    for kind in (events.SyncPlanned, events.DataSyncCompleted):
        said = [fact.chain for fact in await cluster.facts(kind)]
        assert sorted(said) == sorted(chains), kind
    announced = [fact.chain for fact in await cluster.facts(events.NewGamesAvailable)]
    assert len(announced) == len(set(announced))
    orders = [
        (fact.event.transfer, fact.event.attempt)  # type: ignore[union-attr]
        for fact in await cluster.facts(events.TransferAssigned)
    ]
    assert len(orders) == len(set(orders))


async def test_live_database_is_copied_while_it_is_written(cluster: LocalCluster) -> None:
    """A player commits all the time; each announced copy is a sound, committed prefix."""
    await trio(cluster)
    player = cluster.base / "gpu-7"
    command = ["-m", "dataplane.demo.selfplay", "--data-dir", str(player / "data")]
    command += ["--node", "gpu-7", "--config-key", "hex8_2p", "--nats", cluster.server.url]
    command += ["--rounds", "5", "--games-per-round", "10", "--pause", "0.3", "--padding-kb", "20"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=player, stdout=subprocess.DEVNULL
    )
    assert await process.wait() == 0
    triggers = await cluster.facts(events.SelfplayComplete)
    assert len(triggers) == 5
    for trigger in triggers:
        end = (await cluster.ended(trigger.chain)).event
        assert isinstance(end, events.DataSyncCompleted)
    copy = cluster.received("train-1", "gpu-7")
    assert gamedb.count_games(copy) >= 50
    last = (await cluster.facts(events.TransferSucceeded))[-1].event
    assert isinstance(last, events.TransferSucceeded)
    assert last.games == gamedb.count_games(copy)


async def test_p4_two_producers_of_one_name_are_two_entries(cluster: LocalCluster) -> None:
    """gpu-7 and gpu-8 both write games/hex8_2p.db; the trainer ends up with both."""
    await trio(cluster)
    cluster.agent("gpu-8", Role.SELFPLAY)
    await cluster.joined("gpu-8")
    for node, games in (("gpu-7", 5), ("gpu-8", 9)):
        cluster.play(node, games)
        await cluster.assert_exactly_once(await say(cluster, node))
    assert gamedb.count_games(cluster.received("train-1", "gpu-7")) == 5
    assert gamedb.count_games(cluster.received("train-1", "gpu-8")) == 9


async def test_logs_as_json_name_the_chain_and_the_fact_in_every_role(
    cluster: LocalCluster,
) -> None:
    """Of a chain all is found that was decided and done for it, with the fact that moved it on."""
    options = ("--log-json", "--verbose")
    cluster.coordinator("coord", *options)
    cluster.agent("gpu-7", Role.SELFPLAY, *options)
    cluster.agent("train-1", Role.TRAINING, *options)
    await cluster.joined("coord", "gpu-7", "train-1")
    cluster.play("gpu-7", 5)
    chain = await say(cluster)
    await cluster.assert_exactly_once(chain)
    ids = {fact.id for fact in await cluster.facts()}

    def about(name: str) -> list[str]:
        whole = (cluster.base / name / "log").read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        found = [line for line in lines if line.get("chain") == chain]
        assert {line["event"] for line in found} <= ids
        return [line["message"] for line in found]

    await until(
        lambda: any("NEW_GAMES_AVAILABLE" in one for one in about("coord")), "its last line"
    )
    assert "decided: SYNC_PLANNED" in about("coord")[0]
    assert "at work on SELFPLAY_COMPLETE" in about("gpu-7")
    assert "at work on TRANSFER_ASSIGNED" in about("train-1")


async def test_hand_made_trigger_without_headers_completes(cluster: LocalCluster) -> None:
    """What ``nats pub dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p '{"games_count":500}'`` sends."""
    await trio(cluster)
    cluster.play("gpu-7", 7)
    cluster.log.bus.tell("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":500}')

    async def heard() -> bool:
        return bool(await cluster.facts(events.SelfplayComplete))

    await until(heard, "the trigger to be in the log")
    [trigger] = await cluster.facts(events.SelfplayComplete)
    assert trigger.id == f"DATAPLANE-{trigger.sequence}"
    await cluster.assert_exactly_once(trigger.chain)


async def test_p14_what_cannot_be_understood_is_said_once_and_blocks_nothing(
    cluster: LocalCluster,
) -> None:
    """Nonsense under each prefix: one EVENT_REJECTED each with the field, and chains go on."""
    await trio(cluster)
    cluster.play("gpu-7", 7)
    for subject, body in (
        ("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":"many"}'),
        ("dp.node.gpu-7.NO_SUCH_THING.hex8_2p", b"{}"),
        ("dp.task.gpu-7.TRANSFER_ASSIGNED.hex8_2p", b"not json"),
    ):
        cluster.log.bus.tell(subject, body)
    await cluster.assert_exactly_once(await say(cluster))

    async def all_said() -> bool:
        return len(await cluster.facts(events.EventRejected)) == 3

    await until(all_said, "three rejections")
    reasons = [fact.event.reason for fact in await cluster.facts(events.EventRejected)]  # type: ignore[union-attr]
    assert any("$.games_count" in reason for reason in reasons)
    assert any("unknown event type" in reason for reason in reasons)
    assert any("malformed" in reason for reason in reasons)


async def test_node_that_never_answers_fails_the_chain_with_that_reason(tmp_path: Path) -> None:
    """A trigger of a node without an agent ends as failed within the answer limit."""
    async with LocalCluster(tmp_path, answer_limit_seconds=1) as cluster:
        cluster.coordinator()
        await cluster.joined("coord")
        end = (await cluster.ended(await say(cluster, "ghost"))).event
        assert isinstance(end, events.DataSyncFailed)
        assert end.reason == "ghost gave no answer within 1 s"
        assert not await cluster.facts(events.NewGamesAvailable)


async def test_k11_silent_node_is_taken_out_and_chains_complete_without_it(tmp_path: Path) -> None:
    """A trainer vanishes: after the limit HOST_OFFLINE, and the next chain needs it no more."""
    async with LocalCluster(tmp_path, offline_after_seconds=1) as cluster:
        await trio(cluster)
        cluster.agent("train-2", Role.TRAINING)
        await cluster.joined("train-2")
        cluster.kill("train-2")

        async def taken_out() -> bool:
            return bool(await cluster.facts(events.HostOffline))

        # The bucket of heartbeats forgets after 30 s.
        await until(taken_out, "HOST_OFFLINE", 120)
        cluster.play("gpu-7", 5)
        end = await cluster.assert_exactly_once(await say(cluster))
        assert {outcome.target for outcome in end.targets} == {"train-1"}


async def test_processes_stop_cleanly_on_sigterm(cluster: LocalCluster) -> None:
    """SIGTERM ends a coordinator and agents with status 0."""
    await trio(cluster)
    assert [cluster.stop(name) for name in ("coord", "gpu-7", "train-1")] == [0, 0, 0]
