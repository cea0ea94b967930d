"""SSH: whom the transports trust, as whom they appear, and the connections they keep.

The only importer of asyncssh. It must never accept a host key that is unknown or has changed, never
ask for a password, and never let a far end's path lead out of its data root.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import msgspec

from adapters.errors import EntryMissing, Interrupted, PathEscapes, Refused, Stalled, Unreachable
from adapters.files.checks import is_database
from adapters.ssh.channel import Channel
from adapters.ssh.shell import meaning
from adapters.transport import Request
from streams.identity import PathRules, escapes
from streams.values import Endpoint

#: The first is twice as fast as OpenSSH's own first choice; the others are for servers without it.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
)
KEEPALIVE_S = 15
#: Connections that are kept for reuse; beyond that idle ones are let go.
MOST_KEPT = 32
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


Process = asyncssh.SSHClientProcess[bytes]


class SshOptions(msgspec.Struct, frozen=True):
    """Whom to trust, and as whom to appear. No configuration file of SSH is read besides."""

    #: Host keys that are trusted; None is the user's own ``~/.ssh/known_hosts``.
    known_hosts: Path | None = None
    #: The private key, then the only one that is offered; None offers the user's own.
    identity: Path | None = None
    #: In order of preference.
    ciphers: tuple[str, ...] = CIPHERS


def address(endpoint: Endpoint) -> str:
    """The host, once it and the user are known to be no options. Raises `Unreachable`."""
    if not endpoint.ssh_host:
        raise Unreachable(f"{endpoint.node} has no SSH server")
    if not _HOST.fullmatch(endpoint.ssh_host):
        raise Unreachable(f"{endpoint.node}: {endpoint.ssh_host!r} is no host name")
    if endpoint.ssh_user and not _USER.fullmatch(endpoint.ssh_user):
        raise Unreachable(f"{endpoint.node}: {endpoint.ssh_user!r} is no user name")
    return endpoint.ssh_host


def client_words(
    options: SshOptions, endpoint: Endpoint, connect_s: float, ssh: str = "ssh"
) -> list[str]:
    """The words that start the ssh client for `endpoint`, up to the host, which is not in them."""
    settings = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "UpdateHostKeys=no",
        "ConnectionAttempts=1",
        f"ConnectTimeout={max(1, math.ceil(connect_s))}",
        f"ServerAliveInterval={KEEPALIVE_S}",
        "LogLevel=ERROR",
    ]
    if options.known_hosts is not None:
        settings += [
            f"UserKnownHostsFile={_configured(options.known_hosts)}",
            "GlobalKnownHostsFile=/dev/null",
        ]
    words = [ssh, "-F", "/dev/null", "-x", "-T", "-c", ",".join(options.ciphers)]
    words += [word for setting in settings for word in ("-o", setting)]
    if options.identity is not None:
        words += ["-o", f"IdentityFile={_configured(options.identity)}"]
    if endpoint.ssh_user:
        words += ["-l", endpoint.ssh_user]
    return [*words, "-p", str(endpoint.ssh_port)]


def _configured(path: Path) -> str:
    """A path as the value of an option of ssh, which knows quotes and ``%``."""
    text = str(path.absolute())
    if any(bad in text for bad in ('"', "\\", "${", "\n")):
        raise ValueError(f"ssh can't name {text!r}")
    return '"' + text.replace("%", "%%") + '"'


def source_file(request: Request, rules: PathRules) -> str:
    """The absolute path of the file to be fetched. Raises `Refused` for a live database."""
    entry, source = request.entry, request.source
    if request.content_path:
        if not request.content_path.startswith("/") or "\0" in request.content_path:
            raise PathEscapes(f"{request.content_path!r} is no absolute path")
        return request.content_path
    if is_database(entry.path):
        raise Refused(f"a live database is never copied raw: {entry.path}; it needs a snapshot")
    local = rules.local(entry.path, source.node)
    if escapes(local):
        raise PathEscapes(f"{local!r} is no clean relative path")
    if not source.data_root.startswith("/"):
        raise EntryMissing(f"{source.node} does not say where its files are")
    return f"{source.data_root.rstrip('/')}/{local}"


class _Greeter(asyncssh.SSHClient):
    """Knows whether the far end was there at all."""

    def __init__(self) -> None:
        self.met = False

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.met = True


class _Kept:
    """A connection, and how many use it."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self.connection = connection
        self.users = 0
        self.retired = False

    @property
    def usable(self) -> bool:
        return not self.retired and not self.connection.is_closed()

    def retire(self) -> None:
        """Give it to nobody any more."""
        self.retired = True
        self.let_go()

    def let_go(self) -> None:
        """Close it once nobody uses it."""
        if not self.users:
            self.connection.abort()


class Connections:
    """One connection to each far end, shared by the commands there. Lives on one event loop."""

    def __init__(self, options: SshOptions) -> None:
        self._options = options
        self._kept: dict[tuple[str, int, str], _Kept] = {}
        self._locks: dict[tuple[str, int, str], asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def run(
        self, endpoint: Endpoint, request: Request, command: str, window_bytes: int = 2 << 20
    ) -> AsyncIterator[Channel]:
        """Run a command, over the connection there is or a new one, and end it afterwards.

        After an error that may be the connection's the next command gets a new one.
        """
        kept, process = await self._begun(endpoint, request, command, window_bytes)
        kept.users += 1
        try:
            async with _listening(process, endpoint.node, request.stall_s) as channel:
                yield channel
        except (Stalled, Interrupted, asyncio.CancelledError):
            # Who gave up may have waited for a connection that is dead and does not show it.
            kept.retired = True
            raise
        finally:
            kept.users -= 1
            if kept.retired:
                kept.let_go()

    async def _begun(
        self, endpoint: Endpoint, request: Request, command: str, window_bytes: int
    ) -> tuple[_Kept, Process]:
        """A command that runs. A connection that broke while nobody used it is no failure."""
        known = self._kept.get(_key(endpoint))
        kept = await self._connected(endpoint, request)
        try:
            return kept, await _process(kept, endpoint, request, command, window_bytes)
        except Interrupted:
            if kept is not known:
                raise
        kept = await self._connected(endpoint, request)
        return kept, await _process(kept, endpoint, request, command, window_bytes)

    async def close(self) -> None:
        """Let go of all connections."""
        kept, self._kept = list(self._kept.values()), {}
        for one in kept:
            one.retired = True
            one.connection.abort()
        for one in kept:
            await one.connection.wait_closed()

    async def _connected(self, endpoint: Endpoint, request: Request) -> _Kept:
        key = _key(endpoint)
        async with self._locks.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            if kept is None or not kept.usable:
                kept = _Kept(await _connect(self._options, endpoint, request.connect_s))
                self._make_room()
                self._kept[key] = kept
            return kept

    def _make_room(self) -> None:
        idle = [key for key, kept in self._kept.items() if not kept.users]
        for key in idle[: max(0, len(self._kept) - MOST_KEPT + 1)]:
            self._kept.pop(key).let_go()


def _key(endpoint: Endpoint) -> tuple[str, int, str]:
    return address(endpoint), endpoint.ssh_port, endpoint.ssh_user


async def _process(
    kept: _Kept, endpoint: Endpoint, request: Request, command: str, window_bytes: int
) -> Process:
    who = endpoint.node
    try:
        async with asyncio.timeout(request.connect_s):
            return await kept.connection.create_process(command, encoding=None, window=window_bytes)
    except TimeoutError as error:
        kept.retire()
        raise Stalled(f"{who} does not take a command") from error
    except asyncssh.ChannelOpenError as error:
        # A connection that has just broken says so only when the loop comes round.
        await asyncio.sleep(0)
        if kept.connection.is_closed():
            raise Interrupted(f"{who} broke off: {error}") from error
        raise Refused(f"{who} does not take a command: {error}") from error
    except (OSError, asyncssh.Error) as error:
        kept.retire()
        raise Interrupted(f"{who} broke off: {error}") from error


@contextlib.asynccontextmanager
async def _listening(process: Process, who: str, stall_s: float) -> AsyncIterator[Channel]:
    async def wait() -> int | None:
        await process.wait_closed()
        return process.returncode

    breaks = (OSError, asyncssh.Error)
    window = process.channel.get_recv_window()
    channel = Channel(
        who, process.stdin, process.stdout, process.stderr, wait, stall_s, window, breaks
    )
    try:
        yield channel
    finally:
        process.channel.abort()
        await channel.close()


async def _connect(
    options: SshOptions, endpoint: Endpoint, connect_s: float
) -> asyncssh.SSHClientConnection:
    who = f"{endpoint.node} ({endpoint.ssh_host}:{endpoint.ssh_port})"
    known = options.known_hosts or Path.home() / ".ssh" / "known_hosts"
    for path in (known, *([options.identity] if options.identity else [])):
        if not path.is_file():
            raise Refused(f"{who} can't be trusted or asked: there is no {path}")
    greeter = _Greeter()
    extra: dict[str, object] = {}
    if options.identity is not None:
        extra = {"client_keys": [str(options.identity)], "agent_path": None}
    if endpoint.ssh_user:
        extra["username"] = endpoint.ssh_user
    try:
        async with asyncio.timeout(connect_s):
            return await asyncssh.connect(
                endpoint.ssh_host,
                endpoint.ssh_port,
                config=None,
                client_factory=lambda: greeter,
                known_hosts=str(known),
                encryption_algs=list(options.ciphers),
                compression_algs=None,
                preferred_auth="publickey",
                keepalive_interval=KEEPALIVE_S,
                **extra,
            )
    except TimeoutError as error:
        if greeter.met:
            raise Stalled(f"{who} gave no answer") from error
        raise Unreachable(f"{who} gave no answer within {connect_s:g} s") from error
    except asyncssh.ConnectionLost as error:
        raise Interrupted(f"{who} broke off: {error}") from error
    except OSError as error:
        if greeter.met:
            raise Interrupted(f"{who} broke off: {error}") from error
        raise Unreachable(f"{who}: {error}") from error
    except (asyncssh.Error, asyncssh.KeyImportError, ValueError) as error:
        raise meaning(str(error), who, Refused) from error
