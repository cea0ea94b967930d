"""What the transports over SSH share: whom they trust, what they say there, what errors mean.

The only importer of asyncssh. It must never accept a host key that is unknown or has changed, never
ask for a password, and never let a far end's path lead out of its data root.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

import asyncssh
import msgspec

from adapters.checks import is_database
from adapters.digest import hex_of
from adapters.landing import SMALLEST_NPZ_SHARE, partial_name
from adapters.places import OWN_DIRECTORY, RESERVE
from adapters.sqlite import SIDE_FILES
from adapters.throttle import Throttle
from adapters.transport import (
    DigestMismatch,
    DiskFailed,
    DiskFull,
    EntryMissing,
    Interrupted,
    NeverReplaced,
    PathEscapes,
    Progress,
    Refused,
    Regression,
    Request,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.workers import settled
from streams.identity import Ownership, PathRules, escapes
from streams.values import Endpoint

T = TypeVar("T")

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
#: A far end that digests slower than this is taken for stalled.
SLOWEST_DIGEST_BYTES_S = 20e6
_TELL_EVERY_S = 0.2
_SAID_CHARS = 600
_ANSWER_BYTES = 64 << 10
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


class SshOptions(msgspec.Struct, frozen=True):
    """Whom to trust, and as whom to appear. No configuration file of SSH is read besides."""

    #: Host keys that are trusted; None is the user's own ``~/.ssh/known_hosts``.
    known_hosts: Path | None = None
    #: The private key, then the only one that is offered; None offers the user's own.
    identity: Path | None = None
    #: In order of preference.
    ciphers: tuple[str, ...] = CIPHERS


class Telling:
    """Tells progress, but not all of it."""

    def __init__(self, progress: Progress, size_bytes: int) -> None:
        self._progress = progress
        self._size = size_bytes
        self._told = -1
        self._told_at = 0.0

    def tell(self, done: int) -> None:
        """`done` bytes are there."""
        now = time.monotonic()
        if done != self._told and (done == self._size or now - self._told_at >= _TELL_EVERY_S):
            self._told, self._told_at = done, now
            self._progress(done, self._size)


# Whom to talk to.


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


# What errors mean.

_UNTRUSTED = re.compile(
    r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED|host key is known"
    r"|[Hh]ost key is not trusted|No matching host key|no matching host key"
)
_MEANINGS: tuple[tuple[re.Pattern[str], type[TransportError]], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"timed? ?out during banner exchange|banner exchange.*timed out", Stalled),
        (r"Timeout, server|io timeout|timeout in data", Stalled),
        (r"connect to host|Could not resolve hostname|No route to host", Unreachable),
        (r"Network is unreachable|Connection refused", Unreachable),
        (r"Permission denied \([a-z]|Unable to negotiate|Too many authentication", Refused),
        (r"rsync: (?:command )?not found|command not found", Refused),
        (r"No space left on device|[Qq]uota exceeded", DiskFull),
        (r"Read-only file system", DiskFailed),
    )
)


def meaning(said: str, who: str, otherwise: type[TransportError]) -> TransportError:
    """The error that ssh, rsync or the far end's shell speak of; `otherwise` if we can't tell."""
    said = said.strip()[-_SAID_CHARS:]
    if _UNTRUSTED.search(said):
        return Refused(
            f"the host key of {who} is unknown or has changed; find out which, "
            f"then correct the known hosts: {said}"
        )
    for pattern, kind in _MEANINGS:
        if pattern.search(said):
            return kind(f"{who}: {said}")
    return otherwise(f"{who}: {said}" if said else f"{who} broke off")


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


# What is said at the far end: POSIX shell, its words quoted once by `command`.

#: Before what we want to hear, so that a login's greetings are not taken for it.
MARK = "dataplane:"
_NO_FILE, _OTHER_SIZE, _NO_TOOL, _UNREADABLE, _NO_ROOT = 40, 41, 42, 43, 44
_LEADS_OUT, _OTHER_BYTES, _IS_DIRECTORY, _EXISTS, _NOT_MADE, _CALLED_OFF = 45, 46, 47, 48, 49, 50
_NO_COMMAND = (126, 127)
_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

_COMMON = f"""LC_ALL=C; export LC_ALL; unset CDPATH; umask 022; set -f
say() {{ printf '{MARK}%s\\n' "$1"; }}
size() {{ echo $(($(wc -c <"$1"))); }}
own() {{ cd -P -- "${{1%/}}/{OWN_DIRECTORY}/partial" || exit {_NO_ROOT}; }}
digest() {{
  openssl dgst -sha256 <"$1" 2>/dev/null || sha256sum <"$1" 2>/dev/null ||
  shasum -a 256 <"$1" 2>/dev/null ||
  python3 -c "import hashlib,sys
h=hashlib.sha256()
for b in iter(lambda:sys.stdin.buffer.read(1<<20),b''):h.update(b)
print(h.hexdigest())" <"$1" 2>/dev/null; }}
inside() {{
  case "$PWD/" in "$root/{OWN_DIRECTORY}"/*) exit {_LEADS_OUT};; "$root"/*) ;;
  *) exit {_LEADS_OUT};; esac; }}
"""

#: file, size, first byte: the rest of the file in base64.
_GIVE = f"""[ -f "$1" ] || exit {_NO_FILE}
[ -r "$1" ] || exit {_UNREADABLE}
command -v base64 >/dev/null && command -v tail >/dev/null || exit {_NO_TOOL}
[ "$(size "$1")" -eq "$2" ] || exit {_OTHER_SIZE}
say begin
if [ "$3" -gt 1 ]; then tail -c "+$3" <"$1" | base64; else base64 <"$1"; fi
"""

#: root, partial, tools, final name, its directories: what is there, and on which disk.
_PREPARE = f"""root=$1 part=$2 tools=$3 name=$4; shift 4
for t in $tools; do command -v "$t" >/dev/null || {{ echo "no $t" >&2; exit {_NO_TOOL}; }}; done
case "$(digest /dev/null)" in *{_EMPTY_SHA256}*) ;;
*) echo 'no sha256sum, openssl, shasum or python3' >&2; exit {_NO_TOOL};; esac
cd -P -- "$root" || exit {_NO_ROOT}
root=${{PWD%/}} home=$PWD mount= there=1
disk() {{
  df=$(df -Pk . 2>/dev/null)
  [ "${{df##*% }}" = "$mount" ] || {{ mount=${{df##*% }}; home=$PWD; }}; }}
disk
for d; do
  [ -d "./$d" ] || {{ there=; break; }}
  cd -P -- "./$d" || exit {_NOT_MADE}
  inside; disk
done
if [ -z "$there" ]; then :
elif [ -d "./$name" ]; then exit {_IS_DIRECTORY}
elif [ -f "./$name" ]; then say "final $(size "./$name")"
elif [ -e "./$name" ] || [ -L "./$name" ]; then say "final 0"; fi
mkdir -p -- "${{home%/}}/{OWN_DIRECTORY}/partial" || exit {_NOT_MADE}
own "$home"
if [ -f "./$part" ]; then say "have $(size "./$part")"; else say "have 0"; fi
set -- ${{df%\\%*}}
if [ $# -gt 2 ]; then shift $(($# - 2)); say "room $1"; fi
say "home $home"
"""

#: home, partial, offset: bytes in base64 are put there. Not appended: what an attempt that was
#: thought dead still writes are the same bytes at the same place.
_TAKE = """own "$1"
[ "$3" -gt 0 ] || : >"./$2"
{ dd bs=1 seek="$3" count=0 2>/dev/null && base64 -d; } 1<>"./$2"
"""

#: home, partial, digest, size, mtime, merged, side files, root, final name, its directories: the
#: digest is proven, and the final name is given if we are still there to want it.
_PUBLISH = f"""home=$1 part=$2 hex=$3 bytes=$4 stamp=$5; shift 5
merged=$1 sides=$2 root=$3 name=$4; shift 4
own "$home"
[ "$bytes" -gt 0 ] || : >"./$part"
[ -f "./$part" ] && [ "$(size "./$part")" -eq "$bytes" ] || exit {_OTHER_SIZE}
case "$(digest "./$part")" in *"$hex"*) ;; *) : >"./$part"; exit {_OTHER_BYTES};; esac
p=$PWD/$part
[ -z "$stamp" ] || TZ=UTC0 touch -t "$stamp" "$p" 2>/dev/null
chmod 644 "$p" 2>/dev/null
sync "$p" 2>/dev/null || sync 2>/dev/null
say proven
read -r go && [ "$go" = go ] || exit {_CALLED_OFF}
cd -P -- "$root" || exit {_NO_ROOT}
root=${{PWD%/}}
for d; do
  [ -d "./$d" ] || mkdir -- "./$d" || [ -d "./$d" ] || exit {_NOT_MADE}
  cd -P -- "./$d" || exit {_NOT_MADE}
  inside
done
[ -d "./$name" ] && exit {_IS_DIRECTORY}
for s in $sides; do rm -f -- "./$name$s" || exit {_NOT_MADE}; done
if [ -n "$merged" ]; then ln -- "$p" "./$name" || exit {_EXISTS}; rm -f -- "$p"
else mv -f -- "$p" "./$name" || exit {_NOT_MADE}; fi
sync . 2>/dev/null
say landed
"""


def command(script: str, *words: str) -> str:
    """What to say at the far end so that a POSIX shell there runs a script with these words."""
    return shlex.join(["sh", "-c", _COMMON + script, "sh", *words])


def giving(path: str, size_bytes: int, offset: int) -> str:
    """The command that says a file from `offset` on, in base64."""
    return command(_GIVE, path, str(size_bytes), str(offset + 1))


def taking(home: str, partial: str, offset: int) -> str:
    """The command that puts what it hears, in base64, into a partial file from `offset` on."""
    return command(_TAKE, home, partial, str(offset))


_OUTCOMES: dict[int, tuple[type[TransportError], str]] = {
    _NO_FILE: (EntryMissing, "does not hold this content any more"),
    _OTHER_SIZE: (EntryMissing, "holds a file of another size"),
    _NO_TOOL: (Refused, "lacks a tool that this transport needs"),
    _UNREADABLE: (Refused, "may not read the file"),
    _NO_ROOT: (Refused, "has no such data root"),
    _LEADS_OUT: (PathEscapes, "the path leads out of the data root"),
    _OTHER_BYTES: (DigestMismatch, "got other bytes than the entry's"),
    _IS_DIRECTORY: (NeverReplaced, "a directory has the final name"),
    _EXISTS: (NeverReplaced, "this file is only ever merged, and there is one already"),
    _NOT_MADE: (DiskFailed, "would not make a directory or a name"),
    _CALLED_OFF: (Interrupted, "did not hear that it may go on"),
}


def outcome(status: int | None, said: str, who: str) -> TransportError:
    """The error that the end of a command of ours means; None is a connection that broke off."""
    kind, text = _OUTCOMES.get(status or 0, (Interrupted, ""))
    if status in _NO_COMMAND:
        kind, text = Refused, "has no such command, or does not allow it"
    if text and kind not in (DiskFailed, Refused):
        return kind(f"{who}: {text}")
    return meaning(f"{text}: {said.strip()}" if text else said, who, kind)


# A command under way.


class Reading(Protocol):
    """What a command says."""

    async def read(self, n: int = -1) -> bytes: ...


class Writing(Protocol):
    """What a command hears."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...


class Channel:
    """A command under way at the far end; whoever opened it ends it.

    Methods raise `Stalled` if nothing moves for `stall_s`, `Interrupted` if the connection broke
    off, and what the command itself died of if that is known.
    """

    def __init__(
        self,
        who: str,
        stdin: Writing,
        stdout: Reading,
        stderr: Reading,
        wait: Callable[[], Awaitable[int | None]],
        stall_s: float,
    ) -> None:
        self.who = who
        self._stdin, self._stdout = stdin, stdout
        self._wait = wait
        self._stall_s = stall_s
        self._heard = b""
        self._said = b""
        self._listening = asyncio.ensure_future(self._listen(stderr))

    async def read(self, most: int) -> bytes:
        """The next bytes it says; none at the end."""
        if self._heard:
            data, self._heard = self._heard[:most], self._heard[most:]
            return data
        return await self._moving(self._stdout.read(most))

    async def hears(self, word: str, within_s: float | None = None) -> bool:
        """Whether it says a word of ours before it ends; what it says afterwards can be read."""
        line = f"{MARK}{word}\n".encode()
        said = b""
        while line not in said:
            data = await self._moving(self._stdout.read(_ANSWER_BYTES), within_s)
            if not data:
                return False
            said = said[-_ANSWER_BYTES:] + data
        self._heard = said.partition(line)[2]
        return True

    async def answer(self) -> str:
        """All it says. Raises what it died of."""
        said = b""
        while data := await self.read(_ANSWER_BYTES):
            said = (said + data)[:_ANSWER_BYTES]
        await self.succeed()
        return said.decode(errors="surrogateescape")

    async def write(self, data: bytes) -> None:
        """Let it hear bytes, and wait until there is room for more."""
        try:
            self._stdin.write(data)
            await self._moving(self._stdin.drain())
        except (Interrupted, OSError):
            await self.succeed()
            raise Interrupted(f"{self.who} stopped listening") from None

    def end(self) -> None:
        """It will hear no more."""
        with contextlib.suppress(OSError):
            self._stdin.write_eof()

    async def succeed(self, within_s: float | None = None) -> None:
        """Wait until it has ended well. Raises what it died of."""
        status = await self._moving(self._wait(), within_s)
        await settled(self._listening)
        if status != 0:
            raise outcome(status, self._said.decode(errors="replace"), self.who)

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        await settled(self._listening)

    async def _moving(self, step: Awaitable[T], within_s: float | None = None) -> T:
        patience = max(self._stall_s, within_s or 0.0)
        try:
            async with asyncio.timeout(patience):
                return await step
        except TimeoutError as error:
            raise Stalled(f"{self.who}: nothing moved for {patience:g} s") from error
        except (OSError, asyncssh.Error) as error:
            raise Interrupted(f"{self.who} broke off: {error}") from error

    async def _listen(self, stderr: Reading) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await stderr.read(1 << 12):
                self._said = (self._said + data)[-_SAID_CHARS:]


class Opens(Protocol):
    """Runs a command at the far end."""

    def __call__(self, command: str) -> AbstractAsyncContextManager[Channel]: ...


# A push, but for the bytes.


class Place(msgspec.Struct, frozen=True):
    """Where a pushed file gathers at the target."""

    #: The directory whose ``.dataplane/partial`` it is: the highest on the final name's disk.
    home: str
    partial: str
    #: Bytes from the beginning that are there already.
    have: int

    @property
    def path(self) -> str:
        """The partial file, absolute."""
        return f"{self.home.rstrip('/')}/{OWN_DIRECTORY}/partial/{self.partial}"


async def prepared(opens: Opens, request: Request, rules: PathRules, tools: str = "") -> Place:
    """Ask the target what is there. Raises what forbids to send the entry, before a byte moves."""
    directories, name = _final(request)
    partial = partial_name(request.transfer, request.entry)
    root = _root(request.target)
    async with opens(command(_PREPARE, root, partial, tools, name, *directories)) as channel:
        channel.end()
        said = await channel.answer()
    facts = dict(re.findall(rf"^{MARK}(final|have|room) (\d+)$", said, re.MULTILINE))
    _, found, home = said.partition(f"{MARK}home ")
    if not found or "have" not in facts:
        raise Interrupted(f"{request.target.node} gave no answer")
    have, size = int(facts["have"]), request.entry.size_bytes
    _refuse_replacement(request, facts.get("final"), rules)
    if have > size:
        have = 0
    room = int(facts["room"]) * 1024 if "room" in facts else None
    if room is not None and size - have + int(size * RESERVE) > room:
        raise DiskFull(f"{request.target.node} has {room} bytes free, the entry has {size}")
    return Place(home.removesuffix("\n"), partial, have)


async def published(opens: Opens, request: Request, rules: PathRules, place: Place) -> None:
    """Let the target prove the digest and give the file its final name.

    If it is cancelled before the digest is proven, the target gives no name; after that it ends
    first. Raises `DigestMismatch` if the bytes are not the entry's; then nothing is kept.
    """
    directories, name = _final(request)
    entry = request.entry
    merged = rules.ownership(entry.path) is Ownership.MERGED
    words = command(
        _PUBLISH,
        place.home,
        place.partial,
        hex_of(entry.checksum),
        str(entry.size_bytes),
        _stamp(entry.mtime),
        "merged" if merged else "",
        " ".join(SIDE_FILES) if is_database(entry.path) else "",
        _root(request.target),
        name,
        *directories,
    )
    async with opens(words) as channel:
        patience_s = request.stall_s + entry.size_bytes / SLOWEST_DIGEST_BYTES_S
        if not await channel.hears("proven", patience_s):
            await _lacking(channel)
        naming = asyncio.ensure_future(_named(channel))
        try:
            await asyncio.shield(naming)
        except asyncio.CancelledError:
            await settled(naming)
            raise


async def _lacking(channel: Channel) -> None:
    try:
        await channel.succeed()
    except EntryMissing as error:
        raise Interrupted(f"{channel.who}: bytes are missing") from error
    raise Interrupted(f"{channel.who} said nothing")


async def _named(channel: Channel) -> None:
    await channel.write(b"go\n")
    channel.end()
    landed = await channel.hears("landed")
    await channel.succeed()
    if not landed:
        raise Interrupted(f"{channel.who} did not say that the file has landed")


def _final(request: Request) -> tuple[list[str], str]:
    local = request.local_path or request.entry.path
    if escapes(local) or local.split("/", 1)[0] == OWN_DIRECTORY:
        raise PathEscapes(f"{local!r} is no clean path below a data root")
    *directories, name = local.split("/")
    return directories, name


def _root(target: Endpoint) -> str:
    if not target.data_root.startswith("/") or "\0" in target.data_root:
        raise Refused(f"{target.node} does not say where its files are")
    return target.data_root


def _refuse_replacement(request: Request, final_bytes: str | None, rules: PathRules) -> None:
    if final_bytes is None:
        return
    entry, old = request.entry, int(final_bytes)
    if rules.ownership(entry.path) is Ownership.MERGED:
        raise NeverReplaced(f"{entry.path} is only ever merged, and there is one already")
    local = request.local_path or entry.path
    if local.lower().endswith(".npz") and entry.size_bytes < old * SMALLEST_NPZ_SHARE:
        raise Regression(f"{entry.path}: {entry.size_bytes} bytes would replace {old}")


def _stamp(mtime: float) -> str:
    """A time as ``touch -t`` knows it, in UTC; "" if there is none."""
    return datetime.fromtimestamp(mtime, UTC).strftime("%Y%m%d%H%M.%S") if mtime > 0 else ""


# Connections of asyncssh.


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
        kept = await self._connected(endpoint, request)
        kept.users += 1
        try:
            async with _process(kept, endpoint, request, command, window_bytes) as channel:
                yield channel
        except (Stalled, Interrupted):
            kept.retired = True
            raise
        finally:
            kept.users -= 1
            if kept.retired:
                kept.let_go()

    async def close(self) -> None:
        """Let go of all connections."""
        kept, self._kept = list(self._kept.values()), {}
        for one in kept:
            one.retired = True
            one.connection.abort()
        for one in kept:
            await one.connection.wait_closed()

    async def _connected(self, endpoint: Endpoint, request: Request) -> _Kept:
        key = (address(endpoint), endpoint.ssh_port, endpoint.ssh_user)
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


@contextlib.asynccontextmanager
async def _process(
    kept: _Kept, endpoint: Endpoint, request: Request, command: str, window_bytes: int
) -> AsyncIterator[Channel]:
    who = endpoint.node
    try:
        async with asyncio.timeout(request.connect_s):
            process = await kept.connection.create_process(
                command, encoding=None, window=window_bytes
            )
    except TimeoutError as error:
        raise Stalled(f"{who} does not take a command") from error
    except asyncssh.ChannelOpenError as error:
        if kept.connection.is_closed():
            raise Interrupted(f"{who} broke off: {error}") from error
        raise Refused(f"{who} does not take a command: {error}") from error
    except (OSError, asyncssh.Error) as error:
        raise Interrupted(f"{who} broke off: {error}") from error

    async def wait() -> int | None:
        await process.wait_closed()
        return process.returncode

    channel = Channel(who, process.stdin, process.stdout, process.stderr, wait, request.stall_s)
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


def paced_bytes(throttle: Throttle, least: int, most: int, seconds: float) -> int:
    """So many bytes as pass in `seconds` of the rate, within bounds; `most` without a limit."""
    rate = throttle.bytes_per_s
    return max(least, min(most, int(rate * seconds))) if rate else most
