"""rsync and base64 between this process and a real sshd, over a wire that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.errors import DigestMismatch, EntryMissing, Interrupted, Refused, Stalled
from adapters.files.digest import hex_of
from adapters.files.landing import Landed, Landing
from adapters.files.places import OWN_DIRECTORY
from adapters.ssh import push as ssh_push
from adapters.ssh import rsync as rsync_module
from adapters.ssh.base64_ssh import Base64Transport
from adapters.ssh.channel import Channel, Opens
from adapters.ssh.connections import SshOptions
from adapters.ssh.push import Place
from adapters.ssh.rsync import RsyncTransport
from adapters.throttle import Throttle
from adapters.transport import Progress, Request
from streams.identity import PathRules
from streams.values import DataEntry, DataType, Endpoint
from tests.contract.rigs import files_in, left_in
from tests.faults import Proxy
from tests.integration.ssh_server import SshServer, running

PATIENCE_S = 60.0
PATH = "data/gpu-7/x.bin"
NAMES = [
    "with space and ü.bin",
    "line\nend.bin",
    "we[i]rd *?.bin",
    "'quotes' \"and\" $HOME `x`.bin",
    "-rf",
    "ü" * 127,
]
#: Words of who reads behind rsync at the far end.
FOLLOWER = "import hashlib, mmap"
BOTH = {"rsync": RsyncTransport, "base64": Base64Transport}


class Rig:
    """A transport, and a far end behind a wire."""

    def __init__(self, kind: str, server: SshServer, root: Path) -> None:
        self.kind = kind
        self.server = server
        self.wire = Proxy(server.port)
        #: The far end's data root.
        self.root = root
        self.transport: RsyncTransport | Base64Transport = BOTH[kind](server.options())

    def become(self, options: SshOptions) -> None:
        """Trust and appear differently."""
        self.transport = BOTH[self.kind](options)

    @property
    def far(self) -> Endpoint:
        """How the far end is reached."""
        return self.server.endpoint(self.root, self.wire.port)

    def request(
        self, entry: DataEntry, content: Path | None = None, local: str = PATH, stall_s: float = 20
    ) -> Request:
        """One attempt."""
        return Request(
            "t-1",
            entry,
            source=self.far,
            target=self.far,
            content_path=str(content or ""),
            local_path=local,
            stall_s=stall_s,
            connect_s=10,
        )

    async def fetch(
        self,
        landing: Landing,
        content: Path | None,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
        stall_s: float = 20,
    ) -> int:
        """Fetch into a landing."""
        request = self.request(landing.entry, content, stall_s=stall_s)
        async with asyncio.timeout(PATIENCE_S):
            return await self.transport.fetch(request, landing, throttle or Throttle(), progress)

    async def push(
        self,
        entry: DataEntry,
        file: Path,
        local: str = PATH,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
        stall_s: float = 20,
    ) -> int:
        """Push a file."""
        request = self.request(entry, local=local, stall_s=stall_s)
        async with asyncio.timeout(PATIENCE_S):
            return await self.transport.push(request, file, throttle or Throttle(), progress)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """The far end's sshd."""
    server = SshServer(tmp_path / "ssh")
    server.start()
    yield server
    server.stop()


async def rigged(kind: str, server: SshServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig, and no process and no connection of it afterwards."""
    (tmp_path / "far").mkdir()
    rig = Rig(kind, server, tmp_path / "far")
    await rig.wire.open()
    yield rig
    await rig.transport.close()
    # Only ssh, and the rsync that started it, know whom to trust.
    assert running(str(server.directory / "known_hosts")) == []
    await rig.wire.close()


@pytest.fixture(params=BOTH)
async def rig(
    request: pytest.FixtureRequest, server: SshServer, tmp_path: Path
) -> AsyncIterator[Rig]:
    """Each of the two."""
    async for rig in rigged(request.param, server, tmp_path):
        yield rig


@pytest.fixture
async def base64(server: SshServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """base64 alone."""
    async for rig in rigged("base64", server, tmp_path):
        yield rig


@pytest.fixture
async def rsync(server: SshServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """rsync alone."""
    async for rig in rigged("rsync", server, tmp_path):
        yield rig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data root here."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def entry_of(data: bytes, path: str = PATH, mtime: float = 0.0) -> DataEntry:
    """An entry that means exactly `data`."""
    return DataEntry(
        path=path,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        mtime=mtime,
    )


def held(tmp_path: Path, data: bytes, name: str = "content") -> tuple[DataEntry, Path]:
    """An entry, and an immutable file that holds it."""
    (tmp_path / "held").mkdir(exist_ok=True)
    file = tmp_path / "held" / name
    file.write_bytes(data)
    return entry_of(data), file


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_is_taken_literally(rig: Rig, tmp_path: Path, root: Path, name: str) -> None:
    """Quotes, patterns, spaces, line ends, both ways, also in directories and the data root."""
    data = os.urandom(3000)
    entry, file = held(tmp_path, data, name)
    (tmp_path / "held" / "weird xy.bin").write_bytes(b"what the pattern would match")
    landing = await Landing.open(root, entry, "t-1", PATH)
    assert await rig.fetch(landing, file) == len(data)
    await landing.commit()
    rig.root = tmp_path / name / "far"
    rig.root.mkdir(parents=True)
    (tmp_path / "weird xy.bin" / "far").mkdir(parents=True)
    assert await rig.push(entry, file, f"{name}/{name}") == len(data)
    assert files_in(root) == {PATH: data}
    assert files_in(rig.root) == {f"{name}/{name}": data}
    assert list((tmp_path / "weird xy.bin").rglob("*.*")) == []


async def test_the_two_go_on_with_what_the_other_left(server: SshServer, tmp_path: Path) -> None:
    """A chain of transports loses nothing on the way."""
    (tmp_path / "far").mkdir()
    data = os.urandom(9_000_000)
    entry, file = held(tmp_path, data)
    kept = [0]
    for kind, allowance in (("base64", 6_000_000), ("rsync", 4_000_000), ("base64", None)):
        rig = Rig(kind, server, tmp_path / "far")
        await rig.wire.open()
        rig.wire.up, rig.wire.cuts = allowance, True
        if allowance:
            with pytest.raises(Interrupted):
                await rig.push(entry, file)
            (partial,) = (rig.root / OWN_DIRECTORY / "partial").iterdir()
            kept.append(partial.stat().st_size)
        else:
            # What sshd had buffered at the cut may arrive after we looked: then less is sent.
            assert 0 < await rig.push(entry, file) <= len(data) - kept[-1]
        await rig.transport.close()
        await rig.wire.close()
    assert 0 < kept[1] < kept[2] < len(data)
    assert files_in(tmp_path / "far") == {PATH: data}


async def test_p7_a_live_database_is_never_copied_raw(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Without a snapshot there is nothing to fetch; other files may be read where they are."""
    (rig.root / "games").mkdir()
    with sqlite3.connect(rig.root / "games/live.db") as live:
        live.execute("CREATE TABLE games (id)")
    data = (rig.root / "games/live.db").read_bytes()
    (rig.root / "games/x.jsonl").write_bytes(data)
    landing = await Landing.open(root, entry_of(data, "games/gpu-7/live.db"), "t-1", PATH)
    with pytest.raises(Refused, match="a live database is never copied raw"):
        await rig.fetch(landing, None)
    await landing.abort()
    assert rig.wire.connections == 0
    landing = await Landing.open(root, entry_of(data, "games/gpu-7/x.jsonl"), "t-1", PATH)
    assert await rig.fetch(landing, None) == len(data)
    await landing.commit()


async def test_k18_a_host_key_that_changed_is_refused(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Somebody may be in between."""
    entry, file = held(tmp_path, b"x")
    rig.server.trust(rig.server.directory / "other_host_key")
    await refused(rig, entry, file, root, "host key of .* is unknown or has changed")


async def test_k18_a_host_key_that_nobody_knows_is_refused(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Nobody is trusted because he came first."""
    entry, file = held(tmp_path, b"x")
    (rig.server.directory / "known_hosts").write_text("")
    await refused(rig, entry, file, root, "host key of .* is unknown or has changed")
    assert (rig.server.directory / "known_hosts").read_text() == ""


async def refused(rig: Rig, entry: DataEntry, file: Path, root: Path, why: str) -> None:
    """Neither way is open, and nothing came."""
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Refused, match=why):
        await rig.fetch(landing, file)
    await landing.abort()
    with pytest.raises(Refused, match=why):
        await rig.push(entry, file)
    assert files_in(rig.root) == {}


async def test_a_far_end_that_stopped_ends_a_push_as_stalled(rig: Rig, tmp_path: Path) -> None:
    """Its processes are there and do nothing: the connection alone shows no fault."""
    data = os.urandom(30_000_000)
    entry, file = held(tmp_path, data)
    pushing = asyncio.create_task(rig.push(entry, file, throttle=Throttle(40), stall_s=2))
    partials = rig.root / OWN_DIRECTORY / "partial"
    await until(lambda: any(p.stat().st_size for p in partials.glob("*")))
    stopped = rig.server.sessions()
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Stalled):
        await pushing
    assert files_in(rig.root) == {}
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert await rig.push(entry, file) < len(data)
    assert files_in(rig.root) == {PATH: data}


@pytest.mark.parametrize("mtime", [1e13, 1e30, float("inf")])
async def test_a_time_that_no_clock_shows_keeps_no_push_out(
    rig: Rig, tmp_path: Path, mtime: float
) -> None:
    """The file gets its name, and the time of its arrival."""
    entry, file = held(tmp_path, b"x" * 1000)
    await rig.push(msgspec.structs.replace(entry, mtime=mtime), file)
    assert files_in(rig.root) == {PATH: b"x" * 1000}


async def test_a_push_touches_nothing_but_its_file(rig: Rig, tmp_path: Path) -> None:
    """A hundred neighbours keep their content, their times and their inodes."""
    directory = (rig.root / PATH).parent
    directory.mkdir(parents=True)
    for number in range(100):
        (directory / f"{number}.bin").write_bytes(b"%d" % number)

    def seen() -> set[tuple[str, int, int, bytes]]:
        return {
            (p.name, p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes())
            for p in directory.iterdir()
            if p.name != "x.bin"
        }

    before = seen()
    entry, file = held(tmp_path, b"x" * 1000)
    await rig.push(entry, file)
    assert seen() == before
    assert len(before) == 100


async def test_p12_there_are_never_more_connections_than_allowed(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Twenty are asked for at once: rsync runs three at a time, base64 shares one connection."""
    rig.transport = BOTH[rig.kind](rig.server.options(), at_once=3)
    entry, file = held(tmp_path, os.urandom(10_000))

    async def one(number: int) -> None:
        landing = await Landing.open(root, entry, f"t-{number}", f"{number}.bin")
        request = Request(f"t-{number}", entry, rig.far, rig.far, content_path=str(file))
        await rig.transport.fetch(request, landing, Throttle(), lambda *_: None)
        await landing.commit()

    async with asyncio.TaskGroup() as all_of_them:
        for number in range(20):
            all_of_them.create_task(one(number))
    assert len(files_in(root)) == 20
    assert rig.wire.most_open <= (3 if rig.kind == "rsync" else 1)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts a small disk somewhere, and takes it away."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounts: list[Path] = []

    def mount(path: Path, size: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
        mounts.append(path)

    yield mount
    for path in mounts:
        subprocess.run(["umount", "-l", path], check=True)


async def test_p6_a_push_gathers_on_the_disk_of_its_final_name(
    rig: Rig, tmp_path: Path, mounted: Callable[[Path, str], None]
) -> None:
    """Between disks a rename is a copy, which would be seen half done."""
    mounted(rig.root / "big", "64m")
    (rig.root / "big/games").mkdir()
    data = os.urandom(9_000_000)
    entry, file = held(tmp_path, data)
    rig.wire.up, rig.wire.cuts = 6_000_000, True
    with pytest.raises(Interrupted):
        await rig.push(entry, file, "big/games/gpu-7/x.bin")
    assert len(left_in(rig.root / "big")) == 1
    rig.wire.up = None
    assert await rig.push(entry, file, "big/games/gpu-7/x.bin") < len(data)
    assert files_in(rig.root) == {"big/games/gpu-7/x.bin": data}


async def test_base64_needs_nothing_but_a_shell_and_a_few_tools(
    base64: Rig, tmp_path: Path, root: Path
) -> None:
    """Where there is no rsync, no Python, no df, no rm."""
    base64.server.allow_bare()
    data = os.urandom(500_000)
    entry, file = held(tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    assert await base64.fetch(landing, file) == len(data)
    await landing.commit()
    assert await base64.push(entry, file) == len(data)
    assert files_in(base64.root) == files_in(root) == {PATH: data}


async def test_a_push_without_a_tool_that_knows_sha_256_is_refused(
    base64: Rig, tmp_path: Path
) -> None:
    """What nobody there can prove is not sent."""
    base64.server.allow_bare()
    (base64.server.directory / "bare/openssl").unlink()
    entry, file = held(tmp_path, b"x")
    with pytest.raises(Refused, match="sha256sum"):
        await base64.push(entry, file)
    assert left_in(base64.root) == []


async def test_a_far_end_without_rsync_refuses(rsync: Rig, tmp_path: Path, root: Path) -> None:
    """Another transport may do."""
    rsync.server.allow_bare()
    entry, file = held(tmp_path, b"x")
    await refused(rsync, entry, file, root, "rsync")


@pytest.mark.parametrize("greeting", ["echo Welcome", "yes Welcome | head -c 500000"])
async def test_a_greeting_is_not_taken_for_content(
    base64: Rig, tmp_path: Path, root: Path, greeting: str
) -> None:
    """Some logins talk before they listen, and some say more than is ever kept."""
    base64.server.allow(f'{greeting}; exec sh -c "$SSH_ORIGINAL_COMMAND"')
    data = os.urandom(5_000)
    entry, file = held(tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    assert await base64.fetch(landing, file) == len(data)
    await landing.commit()
    assert await base64.push(entry, file) == len(data)


async def test_base64_reuses_its_connection_until_it_breaks(
    base64: Rig, tmp_path: Path, root: Path
) -> None:
    """A handshake costs more than a small file; and a broken one is not used again."""
    entry, file = held(tmp_path, os.urandom(5_000))
    await base64.push(entry, file)
    await base64.push(entry, file, "again")
    assert base64.wire.connections == 1
    for pid in base64.server.sessions():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: base64.wire.open_now == 0)
    await base64.push(entry, file, "once more")
    assert base64.wire.connections == 2
    assert len(files_in(base64.root)) == 3


async def test_a_connection_that_breaks_at_this_moment_is_no_refusal(
    base64: Rig, tmp_path: Path
) -> None:
    """It is not known to be closed yet, and takes no command any more: there is a new one."""
    entry, file = held(tmp_path, os.urandom(5_000))
    await base64.push(entry, file)
    connections, request = base64.transport._connections, base64.request(entry)
    for kept in connections._kept.values():
        kept.connection.abort()
    async with connections.run(request.target, request, "true") as channel:
        await channel.succeed()
    assert base64.wire.connections == 2


async def test_p6_a_push_that_is_digested_on_the_way_lands_only_what_it_should(
    rsync: Rig, tmp_path: Path
) -> None:
    """The far end reads behind rsync; what it finds otherwise is looked at again, and refused."""
    rsync.transport = RsyncTransport(rsync.server.options(), followed_from=0)
    data = os.urandom(9_000_000)
    entry, file = held(tmp_path, data)
    _, wrong = held(tmp_path, data[:-1] + bytes([data[-1] ^ 1]), "wrong")
    with pytest.raises(DigestMismatch):
        await rsync.push(entry, wrong)
    assert files_in(rsync.root) == {}
    assert await rsync.push(entry, file, throttle=Throttle(80)) == len(data)
    assert files_in(rsync.root) == {PATH: data}


async def test_what_was_proven_on_the_way_is_not_digested_again(
    rsync: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh file, sent by one rsync, is named by who read behind it, and not read once more."""
    named, again = list[str](), ssh_push.published

    async def seen(opens: Opens, request: Request, rules: PathRules, place: Place) -> None:
        named.append(request.local_path)
        await again(opens, request, rules, place)

    monkeypatch.setattr(ssh_push, "published", seen)
    rsync.transport = RsyncTransport(rsync.server.options(), followed_from=0)
    entry, file = held(tmp_path, os.urandom(5_000_000))
    assert await rsync.push(entry, file) == 5_000_000
    rsync.wire.up, rsync.wire.cuts = 3_000_000, True
    with pytest.raises(Interrupted):
        await rsync.push(entry, file, "again.bin")
    rsync.wire.heal()
    assert await rsync.push(entry, file, "again.bin") > 0
    assert named == ["again.bin"]


async def test_what_is_digested_on_the_way_gets_no_name_once_it_is_given_up(
    rsync: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes are there and proven; the sender, who still had to say that they are, is gone."""
    digested, hears, send = asyncio.Event(), Channel.hears, RsyncTransport._send

    async def listens(channel: Channel, word: str, within_s: float | None = None) -> bool:
        came = await hears(channel, word, within_s)
        if came and word == "digested":
            digested.set()
        return came

    async def sends_and_hangs(*given: Any) -> int:
        await send(*given)
        await asyncio.Event().wait()
        return 1

    monkeypatch.setattr(rsync_module, "SHARED_BELOW_BYTES", 0)
    monkeypatch.setattr(Channel, "hears", listens)
    monkeypatch.setattr(RsyncTransport, "_send", sends_and_hangs)
    rsync.transport = RsyncTransport(rsync.server.options(), followed_from=0)
    entry, file = held(tmp_path, os.urandom(3_000_000))
    pushing = asyncio.create_task(rsync.push(entry, file))
    await asyncio.wait_for(digested.wait(), PATIENCE_S)
    pushing.cancel()
    await asyncio.wait([pushing])
    await until(lambda: not rsync.server.sessions())
    assert files_in(rsync.root) == {}


async def test_who_reads_behind_a_connection_that_fell_silent_ends_by_itself(
    rsync: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more will come, and nobody can say so: the far end's system takes us for there."""
    monkeypatch.setattr(rsync_module, "SHARED_BELOW_BYTES", 0)
    rsync.transport = RsyncTransport(rsync.server.options(), followed_from=0)
    entry, file = held(tmp_path, os.urandom(20_000_000))

    def look(done: int, _total: int) -> None:
        if done:
            assert running(FOLLOWER) and running(hex_of(entry.checksum))
            rsync.wire.up = rsync.wire.down = 0

    with pytest.raises(Stalled):
        await rsync.push(entry, file, throttle=Throttle(40), progress=look, stall_s=1.0)
    assert rsync.wire.open_now
    await until(lambda: not running(hex_of(entry.checksum)))
    assert rsync.wire.open_now


async def test_rsync_saves_what_an_older_version_has(
    rsync: Rig, tmp_path: Path, root: Path
) -> None:
    """Of a database with a few changed pages little more than these moves; the old one stays."""
    old = bytearray(os.urandom(4_000_000))
    landing = await Landing.open(root, entry_of(bytes(old)), "t-0", "x.jsonl")
    await landing.write(old)
    await landing.commit()
    new = bytes(old[:1_000_000] + os.urandom(4096) + old[1_004_096:])
    _, file = held(tmp_path, new)
    landing = await Landing.open(root, entry_of(new, "gpu-7/x.jsonl"), "t-1", "x.jsonl")
    assert 4096 <= await rsync.fetch(landing, file) < 100_000
    assert files_in(root) == {"x.jsonl": bytes(old)}
    await landing.commit()
    assert files_in(root) == {"x.jsonl": new}
    assert left_in(root) == []


async def test_p22_same_size_and_time_are_not_taken_for_same_content(
    rsync: Rig, tmp_path: Path, root: Path
) -> None:
    """An older version that looks like the newer one is none."""
    old, new = os.urandom(300_000), os.urandom(300_000)
    landing = await Landing.open(root, entry_of(old, mtime=1e9), "t-0", "x.jsonl")
    await landing.write(old)
    await landing.commit()
    _, file = held(tmp_path, new)
    os.utime(file, (1e9, 1e9))
    landing = await Landing.open(root, entry_of(new, "gpu-7/x.jsonl"), "t-1", "x.jsonl")
    await rsync.fetch(landing, file)
    await landing.commit()
    assert files_in(root) == {"x.jsonl": new}


async def test_rsync_needs_room_for_the_entry_only_once(
    rsync: Rig, tmp_path: Path, root: Path, mounted: Callable[[Path, str], None]
) -> None:
    """What it writes aside gives its room back as the landing takes it."""
    if shutil.disk_usage(tmp_path).free < 1 << 30:
        pytest.fail("this needs 1 GiB of disk")
    mounted(root, "80m")
    entry, file = held(tmp_path, os.urandom(1 << 20) * 60)
    landing = await Landing.open(root, entry, "t-1", PATH)
    assert await rsync.fetch(landing, file, Throttle(400)) == entry.size_bytes
    assert await landing.commit() == Landed(bytes=entry.size_bytes)


async def test_what_a_process_that_died_left_aside_is_swept_up(
    rsync: Rig, tmp_path: Path, root: Path
) -> None:
    """After a day; what others write aside now is left alone."""
    for name, age_s in (("dead", 2 * 86_400), ("alive", 60)):
        directory = root / OWN_DIRECTORY / "rsync" / name
        (directory / "new").mkdir(parents=True)
        (directory / "new/x").write_bytes(b"half")
        then = time.time() - age_s
        os.utime(directory, (then, then))
    entry, file = held(tmp_path, b"x" * 1000)
    landing = await Landing.open(root, entry, "t-1", PATH)
    await rsync.fetch(landing, file)
    await landing.commit()
    assert left_in(root) == ["rsync/alive/new/x"]


async def test_k16_a_source_that_becomes_shorter_holds_the_entry_no_more(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """It is the source that is to be asked no more, either way; no disk is to blame."""
    data = os.urandom(30_000_000)
    entry, file = held(tmp_path, data)

    def shorten(done: int, total: int) -> None:
        os.truncate(file, len(data) // 2)

    with pytest.raises(EntryMissing):
        await rig.push(entry, file, throttle=Throttle(200), progress=shorten)
    assert files_in(rig.root) == {}
    if rig.kind == "rsync":
        file.write_bytes(data)
        landing = await Landing.open(root, entry, "t-1", PATH)
        with pytest.raises(EntryMissing):
            await rig.fetch(landing, file, throttle=Throttle(200), progress=shorten)
        await landing.abort()


async def test_what_a_source_grows_by_keeps_no_file_wrong(rig: Rig, tmp_path: Path) -> None:
    """What sends bytes sends no more than the entry's; rsync, which sends files, is found out."""
    data = os.urandom(30_000_000)
    entry, file = held(tmp_path, data)

    def grow(done: int, total: int) -> None:
        with file.open("ab") as grown:
            grown.write(b"more")

    pushing = rig.push(entry, file, throttle=Throttle(200), progress=grow)
    if rig.kind == "rsync":
        with pytest.raises(EntryMissing):
            await pushing
        assert files_in(rig.root) == {}
    else:
        await pushing
        assert files_in(rig.root) == {PATH: data}
