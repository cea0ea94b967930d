"""The demo runs for real, and its audit can fail: a wrong byte or a missing end is found."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane.demo.audit import Audit, audit_facts
from dataplane.demo.children import Layout
from streams.codec import Recorded
from streams.events import (
    DataSyncCompleted,
    Event,
    NewGamesAvailable,
    TransferSucceeded,
)
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer
from tests.conftest import eventually

COMMAND = [sys.executable, "-m", "dataplane", "demo"]
#: One round, two self-play nodes, two configurations.
CHAINS = 4
#: Two training nodes, each with both files of both self-play nodes.
COPIES = 8
#: Of what each player wrote, one file is in the bucket.
STORED = 4


@dataclass(frozen=True)
class Ran:
    """A demo that ran, and what it left."""

    status: int
    report: dict[str, Any]
    layout: Layout

    async def audit(self, facts: list[Recorded]) -> Audit:
        """What the audit says of `facts` and of the files as they are now."""
        return await audit_facts(facts, self.layout.data, CHAINS)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run for all tests of this module; they leave its files as they found them."""
    directory = tmp_path_factory.mktemp("demo") / "kept"
    command = [*COMMAND, "--json", "--rounds", "1", "--keep", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout, done.stderr
    return Ran(done.returncode, json.loads(done.stdout), Layout(directory))


@pytest.fixture
async def facts(ran: Ran) -> AsyncIterator[list[Recorded]]:
    """The whole log of the run, read from the store it left."""
    server = EmbeddedServer(ran.layout.nats)
    await server.start_async()
    log = await JetStreamLog.connect(server.url, name="test")
    found: list[Recorded] = []
    end = (await log.state()).last_sequence
    async with aclosing(log.read(until=end)) as batches:
        async for batch in batches:
            found += batch
    await log.close()
    await server.stop_async()
    yield found


def first(facts: list[Recorded], kind: type[Event]) -> Recorded:
    """The first fact of a class."""
    return next(recorded for recorded in facts if isinstance(recorded.event, kind))


@contextmanager
def flipped(file: Path, offset: int) -> Iterator[None]:
    """One bit of a file is wrong."""
    good = file.read_bytes()
    file.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
    yield
    file.write_bytes(good)


def test_every_chain_of_the_demo_ends_exactly_once_though_processes_are_killed(ran: Ran) -> None:
    """A trainer and the coordinator die by SIGKILL at work; nothing is lost, nothing is doubled."""
    assert ran.status == 0, ran.report["audit"]["problems"]
    assert ran.report["passed"]
    assert [kill["name"] for kill in ran.report["kills"]] == ["training-1", "coordinator"]
    totals = ran.report["audit"]["totals"]
    assert (totals["chains_started"], totals["chains_completed"]) == (CHAINS, CHAINS)
    assert (totals["chains_failed"], totals["chains_open"]) == (0, 0)
    assert (totals["announced"], totals["duplicates"]) == (CHAINS, 0)
    copies = len(ran.report["audit"]["copies"])
    assert totals["digests_checked"] == copies == COPIES + STORED
    assert ran.report["stored"] == STORED
    assert totals["bytes_moved"] > 0
    assert 0 < totals["latency_p50_s"] <= totals["latency_p99_s"]
    assert ran.report["views_same"]


async def test_audit_of_what_a_good_run_left_finds_nothing(ran: Ran, facts: list[Recorded]) -> None:
    """The log and the disks alone, read again later, give the same verdict."""
    found = await ran.audit(facts)
    assert found.passed, found.problems
    assert found.totals.facts == ran.report["audit"]["totals"]["facts"]


async def test_audit_finds_what_is_wrong_in_the_bucket(ran: Ran, facts: list[Recorded]) -> None:
    """An object that is not what the log says fails the verdict, by its path."""
    wrong = "games/selfplay-1/hex8_2p.db"
    found = await audit_facts(
        facts, ran.layout.data, CHAINS, lambda path, _: "is gone" if path == wrong else ""
    )
    assert found.problems == [f"{wrong} on s3: is gone"]


async def test_audit_finds_one_wrong_bit_in_a_copy(ran: Ran, facts: list[Recorded]) -> None:
    """A copy that is no longer what its source had fails the verdict, by name."""
    file = ran.layout.data("training-2") / "games" / "selfplay-1" / "hex8_2p.db"
    with flipped(file, file.stat().st_size // 2):
        found = await ran.audit(facts)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("games/selfplay-1/hex8_2p.db on training-2: the file on")
    assert found.totals.digests_checked == COPIES - 1


async def test_audit_finds_a_copy_that_is_not_there(ran: Ran, facts: list[Recorded]) -> None:
    """A file that the log says arrived, and that nobody can read, fails the verdict."""
    file = ran.layout.data("training-1") / "games" / "selfplay-2" / "square8_2p.db"
    aside = file.with_suffix(".aside")
    file.rename(aside)
    found = await ran.audit(facts)
    aside.rename(file)
    assert ["can't be read" in problem for problem in found.problems] == [True]


def without_end(facts: list[Recorded]) -> list[Recorded]:
    end = first(facts, DataSyncCompleted)
    owed = (DataSyncCompleted, NewGamesAvailable)
    return [r for r in facts if r.chain != end.chain or not isinstance(r.event, owed)]


def with_a_second_end(facts: list[Recorded]) -> list[Recorded]:
    return [*facts, replace(first(facts, DataSyncCompleted), id="another")]


def without_an_announcement(facts: list[Recorded]) -> list[Recorded]:
    return [r for r in facts if r is not first(facts, NewGamesAvailable)]


def with_a_repeated_fact(facts: list[Recorded]) -> list[Recorded]:
    return [*facts, first(facts, TransferSucceeded)]


def with_an_unproven_copy(facts: list[Recorded]) -> list[Recorded]:
    gone = first(facts, TransferSucceeded)
    return [r for r in facts if r is not gone]


def with_an_exaggeration(facts: list[Recorded]) -> list[Recorded]:
    said = first(facts, NewGamesAvailable)
    assert isinstance(said.event, NewGamesAvailable)
    more = replace(said, event=replace(said.event, game_count=1_000_000))
    return [more if r is said else r for r in facts]


def with_an_unreadable_message(facts: list[Recorded]) -> list[Recorded]:
    return [*facts, replace(facts[0], id="x", event=None, problem="expected `int` - at `$.x`")]


@pytest.mark.parametrize(
    ("doctored", "complaint"),
    [
        (without_end, r"chain \w+ .* has not ended"),
        (with_a_second_end, r"chain \w+ .* has ended 2 times"),
        (without_an_announcement, r"announced NEW_GAMES_AVAILABLE 0 times, not 1"),
        (with_a_repeated_fact, r"event \w+ is in the log 2 times"),
        (with_an_unproven_copy, r"no transfer before it has proven that"),
        (with_an_exaggeration, r"says 1000000 games in NEW_GAMES_AVAILABLE"),
        (with_an_unreadable_message, r"can't be understood: expected `int`"),
    ],
)
async def test_audit_finds_what_is_wrong_in_a_log(
    ran: Ran,
    facts: list[Recorded],
    doctored: Callable[[list[Recorded]], list[Recorded]],
    complaint: str,
) -> None:
    """A log that breaks a promise fails the verdict, in words that say which."""
    found = await ran.audit(doctored(facts))
    assert not found.passed
    assert any(re.search(complaint, problem) for problem in found.problems), found.problems


async def test_audit_misses_chains_that_were_never_begun(ran: Ran, facts: list[Recorded]) -> None:
    """A log of fewer chains than were to be played is no success, however well they ended."""
    found = await audit_facts(facts, ran.layout.data, CHAINS + 1)
    assert found.problems == [f"{CHAINS} chains were started, not {CHAINS + 1}"]


def test_a_directory_with_files_in_it_is_refused(tmp_path: Path) -> None:
    """--keep never mixes a run with what is there already."""
    (tmp_path / "precious").touch()
    command = [*COMMAND, "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not an empty directory" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """However the demo is ended, all its processes end too."""
    directory = tmp_path / "kept"
    command = [*COMMAND, "--rounds", "5", "--keep", str(directory)]
    with started(command) as demo:
        await eventually(lambda: (directory / "logs" / "selfplay-2.player.log").exists())
        assert len(processes_in(directory)) >= 7
        demo.send_signal(number)
        await eventually(lambda: demo.poll() is not None)
        await eventually(lambda: not processes_in(directory))
    assert demo.returncode == (-number if number is signal.SIGKILL else 130)


PAUSING = """
import asyncio, sys
from pathlib import Path
from dataplane.demo.bucket import DemoBucket
from dataplane.demo.children import Child, Layout, environment_of
from dataplane.prove.servers import BucketServer, single

async def main(layout):
    [bus] = single(layout.nats, layout.log("nats"))
    bucket = BucketServer("bucket", DemoBucket(layout.root / "bucket"))
    await bus.start()
    await bucket.start()
    state, log = layout.state("coord-1"), layout.log("coord-1")
    env = environment_of({"nats_url": bus.url, "node": "coord-1", "state_dir": state})
    coordinator = Child("coord-1", ["dataplane", "coordinator"], state, log, env)
    await coordinator.start()
    while not (state / "views").exists():
        await asyncio.sleep(0.05)
    for child in (coordinator, bus, bucket):
        child.pause()
    print("paused", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(Layout(Path(sys.argv[1]))))
"""


async def test_no_process_is_left_behind_that_is_paused(tmp_path: Path) -> None:
    """Whoever paused it is killed and lets it go on no more."""
    directory = tmp_path / "kept"
    command = [sys.executable, "-c", PAUSING, str(directory)]
    parent = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        assert await parent.stdout.readline() == b"paused\n"
        assert len(processes_in(directory)) >= 3
        parent.kill()
        await parent.wait()
        await eventually(lambda: not processes_in(directory))
    finally:
        with suppress(ProcessLookupError):
            parent.kill()
        for left in processes_in(directory):
            os.kill(left, signal.SIGKILL)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not left behind if the test fails."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def processes_in(directory: Path) -> list[int]:
    """Processes that run in a directory below `directory`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = (process / "cwd").readlink()
        except OSError:
            continue
        if where.is_relative_to(directory.resolve()):
            found.append(int(process.name))
    return found
