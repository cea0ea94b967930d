"""One connection of the ssh client for many rsyncs: while it lasts, when it breaks, afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from adapters.errors import Refused, Stalled, TransportError
from adapters.files.landing import Landing
from adapters.ssh import rsync as rsync_module
from adapters.ssh import sharing
from adapters.ssh.rsync import RsyncTransport
from adapters.throttle import Throttle
from adapters.transport import Brought, Request
from tests.faults import Proxy
from tests.integration.ssh_server import SshServer, running
from tests.integration.test_ssh_transports import PATIENCE_S, entry_of, held, until

#: Half a megabyte, where it is not rsync that is to run: rsync would take it for an answer.
GREETING = 'case "$SSH_ORIGINAL_COMMAND" in rsync*) ;; *) yes welcome | head -c 500000;; esac;'


class Rig:
    """A transport, and a far end behind a wire that counts connections."""

    def __init__(self, server: SshServer, place: Path) -> None:
        self.server = server
        self.place = place
        self.wire = Proxy(server.port)
        self.transport = RsyncTransport(server.options())
        self._numbers = 0

    def request(self, data: bytes, stall_s: float = 20.0) -> Request:
        """For a content that the far end holds."""
        self._numbers += 1
        entry, file = held(self.place, data, f"content-{self._numbers}")
        far = self.server.endpoint(self.place / "far", self.wire.port)
        return Request(
            f"t-{self._numbers}",
            entry,
            far,
            far,
            content_path=str(file),
            local_path=f"{self._numbers}.bin",
            stall_s=stall_s,
            connect_s=10,
        )

    async def fetch(self, data: bytes, stall_s: float = 20.0) -> None:
        """Fetch a content, and let it land."""
        request = self.request(data, stall_s)
        root = self.place / "root"
        landing = await Landing.open(root, request.entry, request.transfer, request.local_path)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.transport.fetch(request, landing, Throttle(), lambda *_: None)
            await landing.commit()
        finally:
            await landing.abort()
        assert (root / request.local_path).read_bytes() == data

    async def fetch_many(self, count: int) -> list[TransportError | None]:
        """Fetch some small contents at once; what each failed with."""
        requests = [self.request(os.urandom(100)) for _ in range(count)]
        came: dict[int, bytes] = {}

        def take(some: Sequence[tuple[int, Brought]]) -> None:
            for number, data in some:
                came[number] = data.read_bytes() if isinstance(data, Path) else bytes(data)

        async with asyncio.timeout(PATIENCE_S):
            failed = list(await self.transport.fetch_many(requests, take))
        for number, data in came.items():
            assert entry_of(data).checksum == requests[number].entry.checksum
        assert {n for n, error in enumerate(failed) if error is None} == set(came)
        return failed


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig; no process, no connection and no socket of it is left afterwards."""
    server = SshServer(tmp_path / "ssh")
    server.start()
    for name in ("root", "far"):
        (tmp_path / name).mkdir()
    rig = Rig(server, tmp_path)
    await rig.wire.open()
    yield rig
    place = rig.transport._sharing._place
    await rig.transport.close()
    assert place is None or not place.exists()
    assert running(str(server.directory / "known_hosts")) == []
    await rig.wire.close()
    server.stop()


async def test_small_files_and_groups_of_them_share_one_connection(rig: Rig) -> None:
    """A handshake costs as much as hundreds of them."""
    assert await rig.fetch_many(20) == [None] * 20
    await rig.fetch(b"alone")
    await asyncio.gather(rig.fetch(b"beside"), rig.fetch(b"another"), rig.fetch_many(5))
    assert rig.wire.connections == 1


async def test_a_large_file_has_a_connection_and_a_core_of_its_own(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever enciphers for all would be slower than each for himself."""
    monkeypatch.setattr(rsync_module, "SHARED_BELOW_BYTES", 1000)
    await rig.fetch(b"small")
    await rig.fetch(os.urandom(1001))
    assert rig.wire.connections == 2
    assert rig.wire.open_now == 1


async def test_more_at_once_than_a_server_allows_in_one_connection_do_not_fail(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond go by themselves."""
    monkeypatch.setattr(sharing, "MOST_THROUGH", 2)
    await asyncio.gather(*(rig.fetch(bytes([number])) for number in range(6)))
    assert 2 <= rig.wire.connections <= 5


async def test_a_connection_that_broke_is_not_used_again(rig: Rig) -> None:
    """Who comes next gets a new one, and does not fail for it."""
    await rig.fetch(b"before")
    for pid in rig.server.sessions():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: rig.wire.open_now == 0)
    await rig.fetch(b"after")
    assert rig.wire.connections == 2


async def test_a_connection_that_fell_silent_fails_who_waits_and_nobody_after(rig: Rig) -> None:
    """Both ends are alive by the looks of it, and nothing passes."""
    await rig.fetch(b"before")
    stopped = rig.server.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Stalled):
        await rig.fetch(b"meanwhile", stall_s=1.0)
    await rig.fetch(b"after")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert rig.wire.connections == 2


async def test_who_may_only_run_rsync_there_goes_by_himself(rig: Rig) -> None:
    """Some accounts allow nothing else, and that is no failure."""
    rig.server.allow('case "$SSH_ORIGINAL_COMMAND" in rsync*) exec $SSH_ORIGINAL_COMMAND;; esac')
    await rig.fetch(b"one")
    await rig.fetch(b"two")
    assert rig.wire.connections == 3


async def test_a_login_that_greets_at_length_is_not_taken_for_silent(rig: Rig) -> None:
    """What is said before the command runs is dropped, more of it than is ever kept too."""
    rig.server.allow(f'{GREETING} eval "$SSH_ORIGINAL_COMMAND"')
    await rig.fetch(b"one")
    await rig.fetch(b"two")
    assert rig.wire.connections == 1


async def test_what_a_far_end_is_not_reached_for_is_said_of_each_of_a_group(rig: Rig) -> None:
    """A host key that nobody knows; and nobody is let in by way of an older connection."""
    rig.server.trust(rig.server.directory / "other_host_key")
    failed = await rig.fetch_many(3)
    assert [type(error) for error in failed] == [Refused] * 3
    assert all("host key" in str(error) for error in failed)


_DIES = """
import asyncio, sys
from pathlib import Path
from adapters.ssh.connections import SshOptions
from adapters.ssh.sharing import Sharing
from adapters.transport import Request
from streams.values import Endpoint
from tests.integration.test_ssh_transports import entry_of

async def main():
    known_hosts, identity, user, port = sys.argv[1:]
    far = Endpoint(node="far", ssh_host="127.0.0.1", ssh_port=int(port), ssh_user=user)
    request = Request("t-1", entry_of(b""), far, far, connect_s=10)
    async with Sharing(SshOptions(Path(known_hosts), Path(identity))).way(far, request) as way:
        print(way.words[-1], flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_it_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """Nobody is left to end it: it ends as soon as nobody holds its input."""
    server = SshServer(tmp_path / "ssh")
    server.start()
    options, user = server.options(), server.endpoint(tmp_path).ssh_user
    words = [str(options.known_hosts), str(options.identity), user, str(server.port)]
    process = subprocess.Popen(
        [sys.executable, "-c", _DIES, *words], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    socket = Path(process.stdout.readline().decode().strip())
    assert socket.is_socket() and running(str(options.known_hosts))
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE_S
    while running(str(options.known_hosts)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not socket.exists()
    socket.parent.rmdir()
    server.stop()
