"""The log on a real nats-server: what is killed, refused, full, drifted or deleted meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest

from streams import reading, topology
from streams.codec import Fact, chain_fact, node_fact
from streams.connection import ConnectOptions
from streams.events import SelfplayComplete, SelfplayNeeded
from streams.jetstream import JetStreamLog
from streams.log import Guard, LogFull, LogUnavailable, PermissionDenied, Receipt
from streams.server import EmbeddedServer, ServerFailed
from streams.services import RequestFailed
from streams.subjects import chain_filter
from streams.topology import (
    ADVISORIES,
    KEYS_BUCKET,
    NODES_BUCKET,
    READERS_OF_A_CLIENT,
    is_news,
    reader_name,
)
from streams.values import DataType
from streams.wire import ApiError, Message, Wire, api, create_consumer
from tests.conftest import PATIENCE_S, Server, eventually

#: "Fails at once": less than an operator's patience, more than a busy machine needs.
PROMPT_S = 8.0

ROLES = """
jetstream { store_dir: "./data" }
authorization { users: [
  { user: admin, password: secret },
  { user: node, password: secret, permissions: {
      publish: { allow: ["dp.node.gpu-1.>", "$JS.API.STREAM.INFO.DATAPLANE", "$JS.ACK.>"] }
      subscribe: { allow: ["_INBOX_gpu-1.>"] } } }
] }
"""


def trigger(number: int, node: str = "gpu-1") -> Fact:
    """Something a node says."""
    event = SelfplayComplete(config_key="hex8_2p", source_node=node, games_count=number)
    return node_fact(event, node, f"{node}-{number}")


def decision(chain: str, number: int) -> Fact:
    """Something decided for a chain."""
    event = SelfplayNeeded(config_key="hex8_2p", node="gpu-1", data_type=DataType.GAMES)
    return chain_fact(event, chain, "cause", number)


async def ids(log: JetStreamLog) -> list[str]:
    """The ids of all that the log holds, in order."""
    end = (await log.state()).last_sequence
    return [fact.id async for batch in log.read(until=end) for fact in batch]


async def fill(log: JetStreamLog, count: int) -> list[str]:
    """So many facts, by the fastest way; their ids."""
    facts = [decision("filled", number) for number in range(count)]
    for start in range(0, count, 1000):
        await log.append(facts[start : start + 1000])
    return [fact.id for fact in facts]


async def crash(server: EmbeddedServer) -> None:
    """kill -9, and start again on the same port with the same store."""
    server.kill()
    await server.start_async()


@asynccontextmanager
async def connected(
    server: EmbeddedServer, *, topology: bool = True, **options: object
) -> AsyncIterator[JetStreamLog]:
    """A log on a server of the test's own."""
    if not server.running:
        await server.start_async()
    log = await JetStreamLog.connect(server.url, **options)  # type: ignore[arg-type]
    if topology:
        await log.ensure_topology()
    yield log
    await log.close()


class TestCrash:
    """A server that is killed with -9 and comes back loses and doubles nothing."""

    async def test_a_reader_goes_on_where_it_was(self, own_server: EmbeddedServer) -> None:
        """Killed three times mid-read, the reader sees every fact once and in order."""
        async with connected(own_server) as log:
            await fill(log, 12_000)
            kills = iter((1000, 5000, 9000, 10**9))
            seen: list[int] = []
            kill = next(kills)
            async with asyncio.timeout(3 * PATIENCE_S):
                async for batch in log.read(until=12_000):
                    seen += [fact.sequence for fact in batch]
                    if len(seen) >= kill:
                        kill = next(kills)
                        await crash(own_server)
            assert seen == list(range(1, 12_001))
            assert log.connection.reconnects >= 3

    async def test_a_waiting_reader_hears_of_what_comes_after(
        self, own_server: EmbeddedServer
    ) -> None:
        """A reader at the end of the log survives the crash and gets the next fact."""
        async with connected(own_server) as log:
            await log.publish(trigger(1))
            reading = log.read()
            async with asyncio.timeout(PATIENCE_S):
                assert [fact.sequence for fact in await anext(reading)] == [1]
                waiting = asyncio.ensure_future(anext(reading))
                await crash(own_server)
                await log.publish(trigger(2))
                assert [fact.sequence for fact in await waiting] == [2]
            await reading.aclose()

    async def test_an_outage_is_said_to_writers_and_borne_by_readers(
        self, own_server: EmbeddedServer
    ) -> None:
        """Past the deadline writers get LogUnavailable; reads and deliveries wait on."""
        async with connected(own_server) as log:
            impatient = await JetStreamLog.connect(own_server.url, deadline_s=4)
            deliveries = await log.consume("d", [], ack_wait_s=30, max_pending=10)
            consuming = asyncio.ensure_future(anext(aiter(deliveries)))
            reading = asyncio.ensure_future(anext(log.read()))
            own_server.kill()
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(LogUnavailable):
                    await impatient.publish(trigger(1))
            await own_server.start_async()
            async with asyncio.timeout(PATIENCE_S):
                await log.publish(trigger(2))
                assert (await consuming).recorded.id == trigger(2).id
                assert [fact.id for fact in await reading] == [trigger(2).id]
            await impatient.close()

    async def test_who_closes_with_something_unsent_hears_no_more_of_it(
        self, own_server: EmbeddedServer
    ) -> None:
        """The server is gone: closing ends, and no task is left with an error nobody asks for."""
        unasked: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unasked.append(context["message"]))
        async with connected(own_server) as log:
            own_server.kill()
            await eventually(lambda: not log.connected)
            await log.connection.send(Message("unsent", b""))
        gc.collect()
        await asyncio.sleep(0)
        assert unasked == []

    async def test_publishers_lose_and_double_nothing(self, own_server: EmbeddedServer) -> None:
        """Killed mid-publish: every receipt is true, every fact is there once."""
        facts = [trigger(number) for number in range(1500)]
        receipts: dict[str, Receipt] = {}

        async def publisher(mine: list[Fact]) -> None:
            for fact in mine:
                receipts[fact.id] = await log.publish(fact)

        async with connected(own_server, try_s=1.0, deadline_s=60) as log:
            work = [asyncio.create_task(publisher(facts[n::16])) for n in range(16)]
            for mark in (300, 800):
                await eventually(lambda mark=mark: len(receipts) >= mark)  # type: ignore[misc]
                await crash(own_server)
            await asyncio.wait_for(asyncio.gather(*work), 3 * PATIENCE_S)
            stored = await ids(log)
            assert sorted(stored) == sorted(fact.id for fact in facts)
            assert all(stored[one.sequence - 1] == id for id, one in receipts.items())

    async def test_guarded_appends_lose_and_double_nothing(
        self, own_server: EmbeddedServer
    ) -> None:
        """Killed mid-append: each chain holds exactly its decisions, whole and in order."""
        chains = [f"chain-{number}" for number in range(120)]
        done: list[str] = []

        async def decider(mine: list[str]) -> None:
            for chain in mine:
                guard = Guard(chain_filter(chain), 0)
                receipt = await log.append([decision(chain, n) for n in range(3)], [guard])
                guard = Guard(chain_filter(chain), receipt.sequence)
                await log.append([decision(chain, 3)], [guard])
                done.append(chain)

        async with connected(own_server, try_s=1.0, deadline_s=60) as log:
            work = [asyncio.create_task(decider(chains[n::6])) for n in range(6)]
            for mark in (30, 80):
                await eventually(lambda mark=mark: len(done) >= mark)  # type: ignore[misc]
                await crash(own_server)
            await asyncio.wait_for(asyncio.gather(*work), 3 * PATIENCE_S)
            stored = await ids(log)
            assert len(stored) == len(set(stored)) == 4 * len(chains)
            for chain in chains:
                first = stored.index(decision(chain, 0).id)
                expected = [decision(chain, n).id for n in range(3)]
                assert stored[first : first + 3] == expected

    async def test_a_frozen_server_makes_no_second_copy(self, own_server: EmbeddedServer) -> None:
        """Tries that are heard after we gave them up are stored once with their repetitions."""
        async with connected(own_server, try_s=0.2) as log:
            assert own_server.pid is not None
            os.kill(own_server.pid, signal.SIGSTOP)
            pair = [decision("c", 1), decision("c", 2)]
            work = asyncio.gather(
                log.publish(trigger(1)),
                log.append(pair, [Guard(chain_filter("c"), 0)]),
                log.append([decision("d", 1)], [Guard(chain_filter("d"), 0)]),
                log.append([decision("e", 1), decision("e", 2)]),
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(work), 1.5)
            os.kill(own_server.pid, signal.SIGCONT)
            receipts = await asyncio.wait_for(work, PATIENCE_S)
            stored = await ids(log)
            assert len(stored) == len(set(stored)) == 6
            assert stored[receipts[1].sequence - 1] == pair[1].id

    async def test_a_consumer_gets_everything(self, own_server: EmbeddedServer) -> None:
        """Killed mid-consume: nothing is lost; what comes again is said to come again."""
        async with connected(own_server) as log:
            await fill(log, 2000)
            deliveries = await log.consume("d", [], ack_wait_s=3, max_pending=100)
            seen: set[int] = set()
            kills = iter((300, 900, 1500, 10**9))
            kill = next(kills)
            async with asyncio.timeout(3 * PATIENCE_S):
                async for delivery in deliveries:
                    seen.add(delivery.recorded.sequence)
                    await delivery.ack()
                    if len(seen) >= kill:
                        kill = next(kills)
                        await crash(own_server)
                    if len(seen) == 2000:
                        break

            async def settled() -> bool:
                info = await api(log.connection, "CONSUMER.INFO.DATAPLANE.d")
                ready = deliveries.take_ready(100)
                for delivery in ready:
                    await delivery.ack()
                return not ready and info["num_pending"] == info["num_ack_pending"] == 0

            await eventually(settled)
            await deliveries.close()


class Line:
    """A line to a server that can be cut while the server lives."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, to_server]
        for source, sink in ((reader, to_server), (from_server, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.transport.abort()

    def cut(self) -> None:
        """Everything under way is lost."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


class TestCut:
    """A line that is cut while the server lives loses and doubles nothing either."""

    async def test_readers_and_publishers_go_on(self, own_server: EmbeddedServer) -> None:
        """What was under way to the reader comes again, what was on its way to the log is there."""
        await own_server.start_async()
        line = Line(own_server.port)
        async with await asyncio.start_server(line, "127.0.0.1", 0) as entry:
            url = f"nats://127.0.0.1:{entry.sockets[0].getsockname()[1]}"
            log = await JetStreamLog.connect(url, try_s=1.0)
            await log.ensure_topology()
            filled = await fill(log, 12_000)
            cuts = iter((100, 3000, 6000, 9000, 10**9))
            cut, seen = next(cuts), list[str]()
            published = asyncio.gather(*(log.publish(trigger(n)) for n in range(100)))
            async with asyncio.timeout(2 * PATIENCE_S):
                async for batch in log.read(until=12_100):
                    seen += [fact.id for fact in batch]
                    if len(seen) >= cut:
                        cut = next(cuts)
                        line.cut()
                await published
            assert seen[:12_000] == filled
            assert sorted(seen[12_000:]) == sorted(trigger(n).id for n in range(100))
            await log.close()


class TestDeletion:
    """Consumers that vanish are made again."""

    async def test_a_reader_survives_the_loss_of_its_consumer(
        self, jetstream_log: JetStreamLog
    ) -> None:
        """An operator deletes it mid-read; the reader goes on without gap or repetition."""
        log = jetstream_log
        await fill(log, 5000)
        seen: list[int] = []
        async with asyncio.timeout(PATIENCE_S):
            async for batch in log.read(until=5000):
                if not seen or len(seen) > 2000:
                    names = await api(log.connection, "CONSUMER.NAMES.DATAPLANE")
                    for name in names["consumers"] or []:
                        await api(log.connection, f"CONSUMER.DELETE.DATAPLANE.{name}")
                seen += [fact.sequence for fact in batch]
        assert seen == list(range(1, 5001))

    @pytest.mark.parametrize("subjects", [(), ("dp.chain.>",)])
    async def test_a_reader_leaves_a_consumer_that_stays_behind(
        self,
        jetstream_log: JetStreamLog,
        monkeypatch: pytest.MonkeyPatch,
        subjects: tuple[str, ...],
    ) -> None:
        """One that lives and gives nothing, as on a replica that is being mended for a minute."""
        made = 0

        async def create(wire: Wire, stream: str, config: topology.Config) -> dict[str, Any]:
            nonlocal made
            made += 1
            behind = {"filter_subjects": ["dp.task.nobody.>"]} if made < 3 else {}
            return await create_consumer(wire, stream, {**config, **behind})

        monkeypatch.setattr(reading, "create_consumer", create)
        await fill(jetstream_log, 10)
        async with asyncio.timeout(PATIENCE_S):
            async for batch in jetstream_log.read(subjects=subjects):
                if batch:
                    break
        assert [fact.sequence for fact in batch] == list(range(1, 11))
        assert made == 3

    async def test_a_reader_finds_a_name_where_killed_ones_have_left_none(
        self, own_server: EmbeddedServer
    ) -> None:
        """A client that is killed again and again leaves consumers that live for minutes."""
        async with connected(own_server, name="boss") as log:
            await fill(log, 10)
            for number in range(READERS_OF_A_CLIENT):
                config = {
                    "name": reader_name("boss", number),
                    "metadata": {"reader": "killed"},
                    "ack_policy": "none",
                    "mem_storage": True,
                    "inactive_threshold": 600_000_000_000,
                }
                await create_consumer(log.connection, "DATAPLANE", config)
            async with asyncio.timeout(PATIENCE_S):
                assert len(await ids(log)) == 10

    async def test_a_finished_read_leaves_no_consumer_behind(
        self, jetstream_log: JetStreamLog
    ) -> None:
        """The bus is not left to find out by itself."""
        await fill(jetstream_log, 10)
        await ids(jetstream_log)

        async def none_left() -> bool:
            names = await api(jetstream_log.connection, "CONSUMER.NAMES.DATAPLANE")
            return not names["consumers"]

        await eventually(none_left)

    async def test_a_deleted_durable_is_made_again(self, jetstream_log: JetStreamLog) -> None:
        """Its members go on; at least once means that what was acknowledged may come again."""
        log = jetstream_log
        deliveries = await log.consume("d", [], ack_wait_s=30, max_pending=10)
        await api(log.connection, "CONSUMER.DELETE.DATAPLANE.d")
        await log.publish(trigger(1))
        async with asyncio.timeout(PATIENCE_S):
            assert (await anext(aiter(deliveries))).recorded.sequence == 1
        await deliveries.close()

    async def test_who_consumes_a_stream_that_is_deleted_is_told_so(
        self, own_server: EmbeddedServer
    ) -> None:
        """As that the log is away, of which a process ends in one line and is started again."""
        own_server.start()
        async with connected(own_server) as log:
            deliveries = await log.consume("d", [], ack_wait_s=30, max_pending=10)
            await api(log.connection, "STREAM.DELETE.DATAPLANE")
            with pytest.raises(LogUnavailable, match="consumer d of DATAPLANE: stream not found"):
                async with asyncio.timeout(PATIENCE_S):
                    await anext(aiter(deliveries))
            await deliveries.close()


class TestRefusal:
    """What can't work says so at once, in words an operator can act on."""

    @pytest.mark.parametrize(
        "options", [{"user": "node", "password": "wrong"}, {"token": "wrong"}, {}]
    )
    async def test_bad_credentials_fail_promptly(
        self, own_server: EmbeddedServer, tmp_path: Path, options: ConnectOptions
    ) -> None:
        """PermissionDenied names the server and what to check, and no password."""
        own_server.config = roles(tmp_path)
        await own_server.start_async()
        async with asyncio.timeout(PROMPT_S):
            with pytest.raises(PermissionDenied, match="credentials file") as refusal:
                await JetStreamLog.connect(own_server.url, **options)
        assert str(own_server.port) in str(refusal.value)
        assert "wrong" not in str(refusal.value)

    async def test_a_password_in_the_address_is_not_repeated(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """Errors end up in logs, and secrets must not."""
        own_server.config = roles(tmp_path)
        await own_server.start_async()
        with pytest.raises(PermissionDenied) as refusal:
            await JetStreamLog.connect(f"nats://node:hush@127.0.0.1:{own_server.port}")
        assert "hush" not in str(refusal.value)

    async def test_wrong_credentials_files_fail_promptly(
        self, nats_server: Server, tmp_path: Path
    ) -> None:
        """Missing, or not what it should be: the client library would read on for ever."""
        junk = tmp_path / "junk"
        junk.write_text("nothing of the kind\n")
        seed = tmp_path / "seed"
        seed.write_text("SUNOTASEED\n")
        async with asyncio.timeout(PROMPT_S):
            wrong: list[ConnectOptions] = [
                {"creds_file": tmp_path / "missing"},
                {"creds_file": junk},
                {"nkey_seed_file": junk},
                {"nkey_seed_file": seed},
            ]
            for options in wrong:
                with pytest.raises(PermissionDenied):
                    await JetStreamLog.connect(nats_server.url, **options)

    async def test_a_seed_file_lets_its_user_in(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """The nkey's private half stays in the file; the server knows the public one."""
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
        public = nkeys.from_seed(bytearray(seed)).public_key.decode()  # type: ignore[no-untyped-call]
        (tmp_path / "seed").write_bytes(seed + b"\n")
        own_server.config = tmp_path / "nkey.conf"
        own_server.config.write_text(
            f"jetstream {{}}\nauthorization {{ users: [ {{ nkey: {public} }} ] }}\n"
        )
        async with connected(own_server, nkey_seed_file=tmp_path / "seed") as log:
            assert (await log.publish(trigger(1))).sequence == 1

    async def test_no_server_fails_promptly(self) -> None:
        """LogUnavailable asks whether it is running, and names the address."""
        async with asyncio.timeout(PROMPT_S):
            with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1\b.*running"):
                await JetStreamLog.connect(["nats://127.0.0.1:1", "nats://127.0.0.1:2"])

    async def test_a_silent_server_fails_promptly(self) -> None:
        """Something listens there and says nothing: not a NATS server."""

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(mute, "127.0.0.1", 0) as silent:
            port = silent.sockets[0].getsockname()[1]
            async with asyncio.timeout(2 * PROMPT_S):
                with pytest.raises(LogUnavailable):
                    await JetStreamLog.connect(f"nats://127.0.0.1:{port}")

    async def test_one_living_server_of_several_is_enough(self, nats_server: Server) -> None:
        """A dead member of the list does not matter."""
        log = await JetStreamLog.connect(["nats://127.0.0.1:1", nats_server.url])
        assert log.connected
        await log.close()

    async def test_a_missing_stream_is_said_within_the_deadline(
        self, own_server: EmbeddedServer
    ) -> None:
        """Nobody made the log: LogUnavailable, from writers and readers."""
        async with connected(own_server, topology=False, deadline_s=0.5) as log:
            with pytest.raises(LogUnavailable):
                await log.publish(trigger(1))
            with pytest.raises(LogUnavailable):
                await log.state()
            with pytest.raises(LogUnavailable):
                await anext(log.read())
            with pytest.raises(LogUnavailable):
                await log.consume("d", [], ack_wait_s=1, max_pending=1)

    async def test_a_denied_subject_reaches_its_publisher_promptly(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """A node that decides something is told so, alone or within a batch; its own facts pass."""
        own_server.config = roles(tmp_path)
        async with connected(own_server, user="admin", password="secret"):
            node = await JetStreamLog.connect(
                own_server.url, name="gpu-1", user="node", password="secret"
            )
            assert (await node.publish(trigger(1))).sequence == 1
            async with asyncio.timeout(PROMPT_S):
                with pytest.raises(PermissionDenied, match=r"dp\.chain\.c"):
                    await node.publish(decision("c", 1))
                with pytest.raises(PermissionDenied, match=r"dp\.node\.gpu-2"):
                    await node.append([trigger(2), trigger(2, node="gpu-2"), trigger(3)])
                with pytest.raises(PermissionDenied):
                    await node.consume("d", [], ack_wait_s=30, max_pending=1)
                with pytest.raises(PermissionDenied):
                    await anext(node.bus.listen("dp.progress.>"))
            assert (await node.state()).last_sequence == 1
            await node.close()

    async def test_an_inbox_of_another_is_refused_when_connecting(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """Else no answer would ever come, and everything would look like a dead bus."""
        own_server.config = roles(tmp_path)
        await own_server.start_async()
        async with asyncio.timeout(PROMPT_S):
            with pytest.raises(PermissionDenied, match=r"inbox.*not for 'gpu-2'; `node`"):
                await JetStreamLog.connect(
                    own_server.url, name="gpu-2", user="node", password="secret"
                )

    async def test_why_the_bus_can_not_be_reached_again_is_said_once(
        self, own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who waits for hours is told what stands in the way, and not four times a second."""
        await own_server.start_async()
        async with connected(own_server) as log:
            own_server.kill()
            await eventually(lambda: "the bus can't be reached again" in caplog.text)
            await own_server.start_async()
            await eventually(lambda: log.connection.reconnects == 1)
        said = [one for one in caplog.messages if "can't be reached again" in one]
        assert len(said) == len(set(said))
        assert any("Connect call failed" in one for one in said)

    async def test_a_full_log_says_so(self, own_server: EmbeddedServer) -> None:
        """LogFull, from publish and append, and what is in it stays."""
        async with connected(own_server, topology=False) as log:
            await log.ensure_topology(max_bytes=100_000)
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(LogFull):
                    for number in itertools.count():
                        await log.publish(trigger(number))
                with pytest.raises(LogFull):
                    await log.append([decision("c", n) for n in range(900)])
            assert (await log.get(1)) is not None

    async def test_a_connection_lost_for_good_is_said(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """The library closes a client that broke a rule: `closed` tells why, and all end."""
        own_server.config = tmp_path / "narrow.conf"
        own_server.config.write_text("max_subscriptions: 5\njetstream {}\n")
        async with connected(own_server) as log:
            deliveries = await log.consume("d", [], ack_wait_s=30, max_pending=10)
            async with asyncio.timeout(PATIENCE_S):
                for number in range(5):
                    await log.connection.subscribe(f"more.{number}", lambda *_: None)
                assert "maximum subscriptions" in await log.connection.closed
                with pytest.raises(LogUnavailable):
                    await anext(aiter(deliveries))
                with pytest.raises(LogUnavailable):
                    await log.publish(trigger(1))
                with pytest.raises(LogUnavailable):
                    await anext(log.read())
            assert not log.connected


def roles(folder: Path) -> Path:
    """A configuration in which a node may say what its node says, and no more."""
    path = folder / "roles.conf"
    path.write_text(ROLES)
    return path


class TestTopology:
    """Streams are made once; a difference is said and left alone."""

    async def test_it_is_made_once(self, own_server: EmbeddedServer) -> None:
        """Two who make it at once, and a third later, find no difference; it keeps its facts."""
        async with connected(own_server, topology=False) as log:
            both = await asyncio.gather(log.ensure_topology(), log.ensure_topology())
            assert list(both) == [[], []]
            made = await log.state()
            await log.publish(trigger(1))
            assert await log.ensure_topology() == []
            now = await log.state()
            assert (now.created, now.last_sequence) == (made.created, 1)

    async def test_a_difference_is_reported_and_not_repaired(
        self, own_server: EmbeddedServer
    ) -> None:
        """Each field that differs is one sentence with both values."""
        async with connected(own_server, topology=False) as log:
            other = {
                **topology.log_stream(duplicate_window_s=60),
                "discard": "old",
                "deny_purge": False,
                "subjects": ["dp.node.>"],
            }
            await api(log.connection, "STREAM.CREATE.DATAPLANE", other)
            for _ in range(2):
                assert set(await log.ensure_topology()) == {
                    "DATAPLANE: subjects: wanted dp.chain.>, dp.node.>, dp.task.>, is dp.node.>",
                    "DATAPLANE: discard: wanted new, is old",
                    "DATAPLANE: duplicate_window: wanted 259200 s, is 60 s",
                    "DATAPLANE: deny_purge: wanted true, is false",
                }

    async def test_the_log_can_not_be_erased(self, jetstream_log: JetStreamLog) -> None:
        """Neither deletion, nor purge, nor a rollup header takes back what was said."""
        log = jetstream_log
        await log.publish(trigger(1))
        await log.publish(trigger(2))
        for call, request in (("MSG.DELETE", {"seq": 1}), ("PURGE", {})):
            with pytest.raises(ApiError):
                await api(log.connection, f"STREAM.{call}.DATAPLANE", request)
        rollup = Message(trigger(3).subject, b"{}", {"Nats-Rollup": "all"})
        assert b"error" in (await log.connection.ask(rollup)).body
        assert len(await ids(log)) == 2

    async def test_an_existing_consumer_stays_as_it_is(
        self, jetstream_log: JetStreamLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Another ack wait is said in the log and does not change the consumer."""
        log = jetstream_log
        await (await log.consume("d", ["dp.>"], ack_wait_s=30, max_pending=10)).close()
        with caplog.at_level(logging.WARNING):
            await (await log.consume("d", ["dp.>"], ack_wait_s=30, max_pending=10)).close()
            assert caplog.text == ""
            await (await log.consume("d", ["dp.>"], ack_wait_s=7, max_pending=10)).close()
        assert "d: ack_wait: wanted 7 s, is 30 s" in caplog.text
        info = await api(log.connection, "CONSUMER.INFO.DATAPLANE.d")
        assert info["config"]["ack_wait"] == 30_000_000_000


class TestBus:
    """Buckets, plain messages, questions."""

    async def test_a_bucket_keeps_the_last_value(self, jetstream_log: JetStreamLog) -> None:
        """Put, get, delete, all."""
        bus = jetstream_log.bus
        assert await bus.kv_all(NODES_BUCKET) == {}
        assert await bus.kv_get(NODES_BUCKET, "gpu-1") is None
        await bus.kv_put(NODES_BUCKET, "gpu-1", b"old")
        await bus.kv_put(NODES_BUCKET, "gpu-1", b"new")
        await bus.kv_put(NODES_BUCKET, "gpu-2", b"two")
        assert await bus.kv_get(NODES_BUCKET, "gpu-1") == b"new"
        await bus.kv_delete(NODES_BUCKET, "gpu-2")
        assert await bus.kv_get(NODES_BUCKET, "gpu-2") is None
        assert await bus.kv_all(NODES_BUCKET) == {"gpu-1": b"new"}

    async def test_of_those_who_create_a_key_one_wins(self, jetstream_log: JetStreamLog) -> None:
        """Also after it was deleted; the others find the winner's value."""
        bus = jetstream_log.bus
        for _ in range(2):
            won = await asyncio.gather(
                *(bus.kv_create(KEYS_BUCKET, "key", b"%d" % n) for n in range(5))
            )
            assert won.count(True) == 1
            assert await bus.kv_get(KEYS_BUCKET, "key") == b"%d" % won.index(True)
            await bus.kv_delete(KEYS_BUCKET, "key")

    async def test_what_the_server_notices_is_kept_for_who_did_not_listen(
        self, jetstream_log: JetStreamLog
    ) -> None:
        """A refused delivery is an advisory, and the stream of those has it."""
        log = jetstream_log
        log.bus.tell("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":1}')
        deliveries = await log.consume("d", ["dp.node.>"], ack_wait_s=30, max_pending=10)
        await (await anext(aiter(deliveries))).nak()

        async def kept() -> bool:
            found = await log.bus.recent(ADVISORIES, 5)
            return any("MSG_NAKED.DATAPLANE.d" in subject for subject, _ in found)

        await eventually(kept)

    async def test_readers_that_come_and_go_are_no_news(self, jetstream_log: JetStreamLog) -> None:
        """What the server notices of them is passed over, and hides nothing that matters."""
        log = jetstream_log
        await log.consume("d", ["dp.node.>"], ack_wait_s=30, max_pending=10)
        await api(log.connection, "CONSUMER.DELETE.DATAPLANE.d")
        for number in range(1, 6):
            await log.publish(trigger(number))
            async with contextlib.aclosing(log.read(until=number)) as batches:
                async for _ in batches:
                    pass

        async def both() -> bool:
            every = [subject for subject, _ in await log.bus.recent(ADVISORIES, 50)]
            news = [subject for subject, _ in await log.bus.recent(ADVISORIES, 1, is_news)]
            readers = sum(".DELETED.DATAPLANE.read_" in subject for subject in every)
            return readers > 0 and news == ["$JS.EVENT.ADVISORY.CONSUMER.DELETED.DATAPLANE.d"]

        await eventually(both)

    async def test_a_listener_hears_what_is_told(
        self, jetstream_log: JetStreamLog, nats_server: Server
    ) -> None:
        """From its own connection and from others, in order, and no other subjects."""
        bus = jetstream_log.bus
        heard = bus.listen("dp.progress.*")
        bus.tell("dp.progress.a", b"1")
        bus.tell("dp.other.a", b"2")
        bus.tell("dp.progress.b", b"3")
        async with asyncio.timeout(PATIENCE_S):
            assert [await anext(heard), await anext(heard)] == [
                ("dp.progress.a", b"1"),
                ("dp.progress.b", b"3"),
            ]
            other = await JetStreamLog.connect(nats_server.url)
            other.bus.tell("dp.progress.c", b"4")
            assert await anext(heard) == ("dp.progress.c", b"4")
            await other.close()
        await heard.aclose()

    async def test_questions_are_answered_several_at_a_time(
        self, jetstream_log: JetStreamLog
    ) -> None:
        """A slow answer does not hold up the next, a failed one says why, and so does nobody."""
        bus = jetstream_log.bus
        first_came, second_came = asyncio.Event(), asyncio.Event()

        async def answer(subject: str, body: bytes) -> bytes:
            if body == b"fail":
                raise ValueError("can't do that")
            if body == b"1":
                first_came.set()
                await second_came.wait()
            else:
                await first_came.wait()
                second_came.set()
            return subject.encode() + b":" + body

        answering = await bus.answer("ask.*", answer)
        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(*(bus.request("ask.x", n) for n in (b"1", b"2")))
            assert answers == [b"ask.x:1", b"ask.x:2"]
            with pytest.raises(RequestFailed, match="can't do that"):
                await bus.request("ask.x", b"fail")
            await answering.close()
            # Who is away is no sign that JetStream is.
            with pytest.raises(LogUnavailable, match=r"nobody listens there$"):
                await bus.request("ask.x", b"1")


class TestEmbeddedServer:
    """The server we bring along starts, stays where it is, and explains itself."""

    def test_it_chooses_its_port_and_keeps_it(self, own_server: EmbeddedServer) -> None:
        """Started again it is where its clients look for it."""
        own_server.start()
        port, pid = own_server.port, own_server.pid
        assert port > 0 and own_server.running
        own_server.stop()
        assert not own_server.running
        own_server.start()
        assert own_server.port == port and own_server.pid != pid

    async def test_it_keeps_its_store_and_its_log_file(self, own_server: EmbeddedServer) -> None:
        """A clean stop and a new start lose neither facts nor the server's own log."""
        async with connected(own_server) as log:
            await log.publish(trigger(1))
            created = (await log.state()).created
        await own_server.stop_async()
        again = EmbeddedServer(own_server.store_dir)
        async with connected(again) as log:
            state = await log.state()
            assert (state.created, state.last_sequence) == (created, 1)
        await again.stop_async()
        assert again.log_file.read_text().count("Server is ready") == 2

    def test_a_port_in_use_is_said(self, own_server: EmbeddedServer, tmp_path: Path) -> None:
        """Not taken for our own server, though one answers there."""
        own_server.start()
        second = EmbeddedServer(tmp_path / "second", port=own_server.port)
        with pytest.raises(ServerFailed, match="address already in use") as failure:
            second.start()
        assert str(own_server.port) in str(failure.value)
        assert not second.running

    def test_a_bad_configuration_is_said(self, own_server: EmbeddedServer, tmp_path: Path) -> None:
        """With the server's own words, and without its page of usage."""
        own_server.config = tmp_path / "bad.conf"
        own_server.config.write_text("jetstream { sync_interval: never }\n")
        with pytest.raises(ServerFailed, match="never") as failure:
            own_server.start()
        assert "Usage:" not in str(failure.value)
        own_server.config = tmp_path / "missing.conf"
        with pytest.raises(ServerFailed, match=r"missing\.conf"):
            own_server.start()

    def test_a_server_without_jetstream_is_said(
        self, own_server: EmbeddedServer, tmp_path: Path
    ) -> None:
        """A bus that keeps nothing is not ready, however long one waits."""
        own_server.config = tmp_path / "plain.conf"
        own_server.config.write_text("server_name: plain\n")
        with pytest.raises(ServerFailed, match="JetStream"):
            own_server.start(timeout_s=1.0)
        assert not own_server.running

    async def test_it_ends_with_its_parent(self, tmp_path: Path) -> None:
        """A parent that is killed with -9 leaves no server behind."""
        script = (
            "import sys, time; from pathlib import Path; from streams.server import EmbeddedServer;"
            "server = EmbeddedServer(Path(sys.argv[1])); server.start();"
            "print(server.pid, flush=True); time.sleep(600)"
        )
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, str(tmp_path / "nats")), stdout=subprocess.PIPE
        )
        assert parent.stdout is not None
        line = await parent.stdout.readline()
        assert alive(int(line))
        parent.kill()
        await parent.wait()
        await eventually(lambda: not alive(int(line)))

    async def test_a_supervisor_hears_of_its_end(self, own_server: EmbeddedServer) -> None:
        """`wait` returns when the process ends, whoever ended it, and `start` brings it back."""
        await own_server.start_async()
        waiting = asyncio.ensure_future(own_server.wait())
        assert own_server.pid is not None
        os.kill(own_server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(waiting, PATIENCE_S) == -signal.SIGKILL
        started = time.monotonic()
        await own_server.start_async()
        assert own_server.running and time.monotonic() - started < PATIENCE_S


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
