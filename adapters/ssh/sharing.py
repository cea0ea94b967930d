"""A connection of the ssh client to each far end that other ssh clients go through: a handshake
costs as much as many small files, and on a long way more than a larger one.

It is ssh's own multiplexing. The connection lives as long as a command at the far end that hears
nothing, so it ends with whoever holds that command's input, in whatever way he ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from adapters.errors import Interrupted, Refused, Stalled, Unreachable
from adapters.ssh.connections import SshOptions, address, client_words
from adapters.ssh.shell import MARK, meaning
from adapters.transport import Request
from adapters.workers import settled
from streams.values import Endpoint

#: Sessions at once through one connection; a server that was never configured allows ten.
MOST_THROUGH = 8
#: Connections that are kept for reuse; beyond that idle ones are let go.
MOST_KEPT = 16
#: Nobody waits longer for one to end by itself.
GRACE_S = 3.0
#: The longest name of a socket, with what ssh puts behind it until it listens.
_MOST_NAME_BYTES = 104 - 18
_HERE = f"{MARK}here".encode()
_SAID_BYTES = 4 << 10
#: What ssh ends with if it was no command of the far end that failed.
_SSH_FAILED = 255


class _Shared:
    """A connection, and how many go through it."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self.socket = socket
        self.users = 0
        self.said = b""
        self._process = process
        self._retired = False
        self._stopping: asyncio.Task[int] | None = None
        assert process.stderr is not None
        self._listening = asyncio.ensure_future(self._listen(process.stderr))

    @property
    def usable(self) -> bool:
        """Whether somebody may go through it."""
        return not self._retired and self._process.returncode is None

    async def hears(self) -> bool:
        """Whether the far end runs the command that it lives by; what ssh says is `said` else.

        What a login says before that is dropped, however much it is.
        """
        assert self._process.stdout is not None
        heard = b""
        while _HERE not in heard:
            more = await self._process.stdout.read(_SAID_BYTES)
            if not more:
                return False
            heard = heard[-len(_HERE) :] + more
        return True

    def retire(self) -> None:
        """Give it to nobody any more; it ends once nobody goes through it."""
        self._retired = True
        self.let_go()

    def let_go(self) -> None:
        """End it if it is of no more use to anybody."""
        if self._retired and not self.users and self._stopping is None:
            self._stopping = asyncio.create_task(self.stop())

    @property
    def over(self) -> bool:
        """Whether nothing of it is left."""
        return self._stopping is not None and self._stopping.done()

    async def stop(self) -> int:
        """End it, and wait until it has; how it did."""
        self._retired = True
        for which, within_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
            self._signal(which)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    return await self.ended()
        raise AssertionError("unreachable")

    async def ended(self) -> int:
        """Wait until ssh has ended; how it did."""
        status = await self._process.wait()
        await settled(self._listening)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return status

    def _signal(self, which: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, which)
                # A stopped process hears nothing.
                os.killpg(self._process.pid, signal.SIGCONT)

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while said := await stderr.read(_SAID_BYTES):
            self.said = (self.said + said)[-_SAID_BYTES:]


class Way:
    """How an ssh client is started for a far end, and whether that went well."""

    def __init__(self, words: list[str], shared: _Shared | None) -> None:
        #: The words that start it, but for the host.
        self.words = words if shared is None else [*words, "-S", str(shared.socket)]
        self._shared = shared

    def failed(self, error: BaseException | None) -> None:
        """What somebody ended with who went this way: the connection may be dead, and silent."""
        if self._shared is not None and isinstance(error, _DOUBTFUL):
            self._shared.retire()


_DOUBTFUL = (Stalled, Interrupted, Unreachable, asyncio.CancelledError)
_Key = tuple[str, int, str]


class Sharing:
    """The connections that one process's ssh clients go through. Lives on one event loop."""

    def __init__(self, options: SshOptions, ssh: str = "ssh") -> None:
        self._options = options
        self._ssh = ssh
        self._shared: dict[_Key, _Shared] = {}
        #: Those that nobody is given any more, and that may still be used, or end.
        self._retired: list[_Shared] = []
        self._locks: dict[_Key, asyncio.Lock] = {}
        #: Who lets nobody in but for what he allows.
        self._strict: set[_Key] = set()
        #: Where the sockets are, once there are any.
        self._place: Path | None = None
        self._numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def way(
        self, endpoint: Endpoint, request: Request, *, alone: bool = False
    ) -> AsyncIterator[Way]:
        """How to start an ssh client for `endpoint`: through a connection that is shared, unless it
        is to be `alone` or there can be none.

        After an error that may be the connection's the next one gets a new one. Raises what the far
        end can't be reached for.
        """
        words = client_words(self._options, endpoint, request.connect_s, self._ssh)
        shared = None if alone else await self._connected(endpoint, request, words)
        if shared is None or shared.users >= MOST_THROUGH:
            yield Way(words, None)
            return
        way = Way(words, shared)
        shared.users += 1
        try:
            yield way
        except BaseException as error:
            way.failed(error)
            raise
        finally:
            shared.users -= 1
            shared.let_go()

    async def close(self) -> None:
        """End all connections."""
        shared = [*self._shared.values(), *self._retired]
        self._shared, self._retired = {}, []
        await asyncio.gather(*(one.stop() for one in shared))
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    async def _connected(
        self, endpoint: Endpoint, request: Request, words: list[str]
    ) -> _Shared | None:
        key = address(endpoint), endpoint.ssh_port, endpoint.ssh_user
        async with self._locks.setdefault(key, asyncio.Lock()):
            shared = self._shared.get(key)
            if shared is not None and shared.usable:
                return shared
            socket = self._socket()
            if key in self._strict or socket is None:
                return None
            self._make_room()
            shared = await _opened(words, socket, endpoint, request)
            if shared is None:
                self._strict.add(key)
            else:
                self._shared[key] = shared
            return shared

    def _socket(self) -> Path | None:
        """The name of a new socket; None where no name would be short enough."""
        if self._place is None:
            self._place = Path(tempfile.mkdtemp(prefix="dp-ssh-"))
        socket = self._place / str(next(self._numbers))
        return socket if len(os.fsencode(socket)) <= _MOST_NAME_BYTES else None

    def _make_room(self) -> None:
        self._retired = [one for one in self._retired if not one.over]
        for key, shared in list(self._shared.items()):
            if not shared.usable or (not shared.users and len(self._shared) >= MOST_KEPT):
                shared.retire()
                self._retired.append(self._shared.pop(key))


async def _opened(
    words: list[str], socket: Path, endpoint: Endpoint, request: Request
) -> _Shared | None:
    """A connection that others may go through; None if the far end allows no command but some."""
    who = endpoint.node
    pipe = asyncio.subprocess.PIPE
    words = [*words, "-M", "-S", str(socket), "-o", "ControlPersist=no"]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            address(endpoint),
            f"echo {_HERE.decode()}; exec cat >/dev/null",
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
    except OSError as error:
        raise Refused(f"{words[0]} can't be run here: {error}") from error
    shared = _Shared(process, socket)
    try:
        async with asyncio.timeout(request.connect_s + request.stall_s):
            if await shared.hears():
                return shared
            status = await shared.ended()
    except TimeoutError:
        await shared.stop()
        raise Stalled(f"{who} gave no answer") from None
    except BaseException:
        await shared.stop()
        raise
    if status == _SSH_FAILED:
        raise meaning(shared.said.decode(errors="replace"), who, Interrupted)
    return None
