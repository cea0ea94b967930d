"""The transport of large files: the real rsync over the real ssh client.

It makes one attempt and never retries. rsync never sees a final name, nor a landing's own file: it
writes a file aside, which is handed to the landing while it grows, so that the digest is known when
the last byte is. An exit code of 0 proves nothing here; the digest does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path, PurePosixPath

import msgspec

from adapters.checks import is_database
from adapters.landing import Landing, partial_name
from adapters.partial import disk_errors
from adapters.places import PARTIAL_MAX_AGE_S, same_disk_directory
from adapters.ssh import (
    Channel,
    Place,
    SshOptions,
    Telling,
    address,
    client_words,
    meaning,
    prepared,
    published,
    source_file,
)
from adapters.throttle import Throttle
from adapters.transport import (
    DiskFailed,
    EntryMissing,
    Interrupted,
    PathEscapes,
    Progress,
    Refused,
    Request,
    Stalled,
    TransportError,
)
from adapters.workers import finish
from streams.identity import GAME_DATABASE_SUFFIXES, PathRules
from streams.values import Endpoint, Transport

#: Below this rsync compares whole contents, above it size and time.
CHECKSUM_BELOW_BYTES = 100_000_000
#: Pages of SQLite; larger files would need too many digests of blocks.
DATABASE_BLOCK_BYTES = 4096
DATABASE_BLOCKS_BELOW_BYTES = 2 << 30
#: Processes at once, each with its own ssh, whatever is asked for.
AT_ONCE = 12
TICK_S = 0.05
#: rsync itself speaks once a second.
SHORTEST_STALL_S = 2.0
#: rsync writes so many bytes at once, so a slow file grows seldom.
WRITE_BYTES = 256 << 10
#: When the grant has changed this much, rsync is begun anew with it, but not all the time.
CHANGE = 0.05
ANEW_S = 1.0
GRACE_S = 3.0
_SAID_BYTES = 4 << 10
_PROGRESS = re.compile(rb"(?:^|[\r\n])\s*(\d+)\s+\d+%")
_LITERAL = re.compile(rb"Literal data: (\d+)")
#: Where an older version has much in common with a newer one; archives and models have nothing.
SAVING_SUFFIXES = (*GAME_DATABASE_SUFFIXES, ".jsonl")


class RsyncTransport:
    """Fetches from and pushes to whoever has an SSH server and rsync.

    The limit is rsync's own ``--bwlimit``. When the grant changes, rsync is ended and begun anew
    where it was, within the attempt and at most once a second.
    """

    name = Transport.RSYNC

    def __init__(
        self,
        options: SshOptions,
        rsync: str = "rsync",
        ssh: str = "ssh",
        *,
        rules: PathRules | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        self._options = options
        self._rsync = rsync
        self._ssh = ssh
        self._rules = rules or PathRules()
        self._slots = asyncio.Semaphore(at_once)

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Fetches.fetch`. Asks nothing of the source if no byte is lacking.

        An older version of a database or of lines of text, where the target has one and no byte
        has come yet, saves what is the same in it; then fewer bytes move than are landed.
        """
        if landing.offset == request.entry.size_bytes:
            return 0
        path = source_file(request, self._rules)
        shell = self._shell(request.source, request)
        telling = Telling(progress, request.entry.size_bytes)
        async with self._slots, _aside(landing, request, path) as aside:
            begun, runs = landing.offset, 0

            async def begin(limit: float) -> _Run:
                nonlocal runs
                runs += 1
                words = [self._rsync, *pull_words(request, shell, limit, aside)]
                return await _Run.begin(words, path.encode(errors="surrogateescape") + b"\0")

            async def follow(_: _Run) -> int:
                await aside.hand_over(landing)
                telling.tell(landing.offset)
                return landing.offset

            run = await _through(begin, request, throttle, follow)
            _judge(run, request, landing, begun)
            if aside.basis is not None and runs == 1 and run.literal is not None:
                return run.literal
            return landing.offset - begun

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Pushes.push`. What came is kept at the target, bound to transfer and digest."""
        size = request.entry.size_bytes
        if await finish(lambda: _size_of(file)) != size:
            raise EntryMissing(f"the file to be sent is no file of {size} bytes")

        def opens(command: str) -> contextlib.AbstractAsyncContextManager[Channel]:
            return _commanded(self._options, self._ssh, request, command)

        async with self._slots:
            place = await prepared(opens, request, self._rules, "rsync")
            if place.have < size:
                await self._send(request, file, place, throttle, Telling(progress, size))
            await published(opens, request, self._rules, place)
            return size - place.have

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _send(
        self, request: Request, file: Path, place: Place, throttle: Throttle, telling: Telling
    ) -> None:
        shell = self._shell(request.target, request)

        async def begin(limit: float) -> _Run:
            nonlocal place
            words = [self._rsync, *push_words(request, shell, limit, file, place)]
            # If it is begun anew, something is there.
            place = msgspec.structs.replace(place, have=max(1, place.have))
            return await _Run.begin(words, b"")

        async def follow(run: _Run) -> int:
            telling.tell(run.done or 0)
            return run.done or 0

        run = await _through(begin, request, throttle, follow)
        if run.status != 0:
            raise failure(run.status, run.said, request.target.node)

    def _shell(self, endpoint: Endpoint, request: Request) -> list[str]:
        address(endpoint)
        return client_words(self._options, endpoint, request.connect_s, self._ssh)


# What is said to rsync.


def common_words(request: Request, shell: list[str], bytes_per_s: float) -> list[str]:
    """The words that every rsync of ours is started with."""
    words = [
        "--protect-args",
        "--copy-links",
        "--times",
        "--chmod=F644",
        "--inplace",
        "--outbuf=L",
        "--no-human-readable",
        "--info=progress2,stats2,flist0",
        f"--timeout={math.ceil(max(request.stall_s, SHORTEST_STALL_S)) + 1}",
        f"--rsh={quoted(shell)}",
    ]
    if bytes_per_s:
        words.append(f"--bwlimit={max(1, round(bytes_per_s / 1024))}")
    if request.entry.size_bytes < CHECKSUM_BELOW_BYTES:
        words.append("--checksum")
    return words


def pull_words(request: Request, shell: list[str], bytes_per_s: float, aside: _Aside) -> list[str]:
    """The words that fetch one file, whose name is said on stdin, into a directory of ours.

    Names on the command line would be patterns to the far end. A file of another size than the
    entry's is not even begun.
    """
    size = request.entry.size_bytes
    words = common_words(request, shell, bytes_per_s)
    words += ["--files-from=-", "--from0", "--no-relative", "--no-dirs", "--no-implied-dirs"]
    words += [f"--min-size={size}b", f"--max-size={size}b"]
    if aside.basis is not None and not aside.file.exists():
        # Whatever its size and time are, it is no copy.
        words += ["--no-whole-file", f"--copy-dest={aside.basis}", "--ignore-times"]
        if is_database(request.entry.path) and size < DATABASE_BLOCKS_BELOW_BYTES:
            words.append(f"--block-size={DATABASE_BLOCK_BYTES}")
    else:
        words.append("--append")
    return [*words, "--", f"{_host(request.source)}:/", f"{aside.directory}/"]


def push_words(
    request: Request, shell: list[str], bytes_per_s: float, file: Path, place: Place
) -> list[str]:
    """The words that send one file to where it gathers, from where it was."""
    words = common_words(request, shell, bytes_per_s)
    words.append("--append" if place.have else "--whole-file")
    # The far end would take a path for a pattern.
    there = re.sub(r"([][*?\\])", r"\\\1", place.path)
    return [*words, "--", str(file.absolute()), f"{_host(request.target)}:{there}"]


def quoted(words: list[str]) -> str:
    """Words as rsync splits them for its remote shell: a quote within quotes is doubled."""
    return " ".join("'" + word.replace("'", "''") + "'" for word in words)


def _host(endpoint: Endpoint) -> str:
    host = address(endpoint)
    return f"[{host}]" if ":" in host else host


# What rsync says.


def progress_in(said: bytes) -> int | None:
    """The last number of bytes done that rsync speaks of; None if it speaks of none."""
    found = _PROGRESS.findall(said)
    return int(found[-1]) if found else None


_BY_STATUS: dict[int, type[TransportError]] = {
    1: Refused,
    2: Refused,
    3: DiskFailed,
    4: Refused,
    5: Refused,
    6: Refused,
    11: DiskFailed,
    13: Refused,
    14: Refused,
    22: Refused,
    24: EntryMissing,
    30: Stalled,
    35: Stalled,
    124: Refused,
    125: Refused,
    126: Refused,
    127: Refused,
}
_MISSING = re.compile(r"\[sender\].*(No such file|Not a directory)|has vanished", re.DOTALL)
_UNREADABLE = re.compile(r"(?:send_files failed to open|link_stat|change_dir).*Permission denied")


def failure(status: int, said: str, who: str) -> TransportError:
    """The error that an exit code of rsync and its last words mean."""
    if status in (23, 24) and _MISSING.search(said):
        return EntryMissing(f"{who} does not hold this content any more: {said.strip()}")
    if status == 23:
        kind: type[TransportError] = Refused if _UNREADABLE.search(said) else DiskFailed
        return meaning(said, who, kind)
    return meaning(said, who, _BY_STATUS.get(status, Interrupted))


def _judge(run: _Run, request: Request, landing: Landing, begun: int) -> None:
    """Raise unless rsync brought all that was lacking."""
    who, size = request.source.node, request.entry.size_bytes
    if run.status != 0:
        raise failure(run.status, run.said, who)
    if landing.offset == begun:
        raise EntryMissing(f"{who} holds no file of {size} bytes there")
    if landing.offset < size:
        raise Interrupted(f"{who} ended after {landing.offset} of {size} bytes")


# rsync under way.


class _Run:
    """One rsync with its ssh: a process group of its own, which ends as a whole."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stdout = self._stderr = b""
        self.began = self.heard_at = time.monotonic()
        #: Bytes of the file that are done, as rsync says.
        self.done: int | None = None
        self.ended = asyncio.ensure_future(self._end())

    @classmethod
    async def begin(cls, words: list[str], names: bytes) -> _Run:
        """Start rsync. Raises `Refused` if it is not installed."""
        process = await _started(words)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(names)
            process.stdin.close()
        return cls(process)

    @property
    def status(self) -> int:
        """How it ended."""
        return self._process.returncode or 0

    @property
    def said(self) -> str:
        """What it complained of last."""
        return self._stderr.decode(errors="replace")

    @property
    def literal(self) -> int | None:
        """Bytes that really moved, if it came to say so."""
        found = _LITERAL.search(self._stdout)
        return int(found[1]) if found else None

    async def stop(self) -> None:
        """End it, and wait until nothing of it runs any more."""
        for which in (signal.SIGTERM, signal.SIGKILL):
            if self.ended.done():
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, which)
                # A stopped process hears nothing.
                os.killpg(self._process.pid, signal.SIGCONT)
            await asyncio.wait([self.ended], timeout=GRACE_S)

    async def _end(self) -> None:
        # The receiver and ssh hold these pipes too: their end is the end of all of them.
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async with asyncio.TaskGroup() as both:
            both.create_task(self._listen(self._process.stdout))
            both.create_task(self._listen_to_complaints(self._process.stderr))
        await self._process.wait()

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        while said := await stdout.read(_SAID_BYTES):
            self._stdout = (self._stdout + said)[-_SAID_BYTES:]
            done = progress_in(self._stdout)
            if done is not None and done != self.done:
                self.done, self.heard_at = done, time.monotonic()

    async def _listen_to_complaints(self, stderr: asyncio.StreamReader) -> None:
        while said := await stderr.read(_SAID_BYTES):
            self._stderr = (self._stderr + said)[-_SAID_BYTES:]


async def _started(words: list[str]) -> asyncio.subprocess.Process:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RSYNC_")}
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment | {"LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise Refused(f"{words[0]} can't be run here: {error}") from error


async def _through(
    begin: Callable[[float], Awaitable[_Run]],
    request: Request,
    throttle: Throttle,
    follow: Callable[[_Run], Awaitable[int]],
) -> _Run:
    """Let rsync run to its end, begun anew whenever the grant changes.

    `begin` takes the limit in bytes per second; `follow` takes in what came and says how many
    bytes are there. Raises `Stalled`; nothing runs any more afterwards, in whatever way it ends.
    """
    while True:
        limit = throttle.bytes_per_s
        run = await begin(limit)
        try:
            ended = await _watched(run, request, throttle, limit, follow)
        except Stalled:
            await run.stop()
            await follow(run)
            raise
        finally:
            await run.stop()
        await follow(run)
        if ended:
            return run


async def _watched(
    run: _Run,
    request: Request,
    throttle: Throttle,
    limit: float,
    follow: Callable[[_Run], Awaitable[int]],
) -> bool:
    """Wait until rsync has ended; False if the grant changed before. Raises `Stalled`."""
    patience_s = max(request.stall_s, SHORTEST_STALL_S)
    if limit:
        patience_s += 2 * WRITE_BYTES / limit
    done = await follow(run)
    moved_at = time.monotonic()
    while not run.ended.done():
        await asyncio.wait([run.ended], timeout=TICK_S)
        before, done, now = done, await follow(run), time.monotonic()
        if done > before:
            moved_at = now
            await _charge(throttle, done - before)
        elif now - max(moved_at, run.heard_at) > patience_s:
            raise Stalled(f"no byte for {patience_s:g} s {run.said}".strip())
        if _changed(limit, throttle.bytes_per_s) and now - run.began >= ANEW_S:
            return run.ended.done()
    return True


def _changed(limit: float, rate: float) -> bool:
    return bool(limit) != bool(rate) or abs(rate - limit) > CHANGE * limit


async def _charge(throttle: Throttle, nbytes: int) -> None:
    """Let others who share the limit know; rsync itself keeps it already."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TICK_S):
            await throttle.take(nbytes)


@contextlib.asynccontextmanager
async def _commanded(
    options: SshOptions, ssh: str, request: Request, command: str
) -> AsyncIterator[Channel]:
    """A command at the target over the ssh client; it ends with this."""
    target = request.target
    host = address(target)
    words = client_words(options, target, request.connect_s, ssh)
    process = await _started([*words, host, command])
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    # An ssh that may not connect for so long has not stalled.
    stall_s = request.stall_s + request.connect_s
    channel = Channel(
        target.node, process.stdin, process.stdout, process.stderr, process.wait, stall_s
    )
    try:
        yield channel
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await channel.close()
        await process.wait()


# The file aside.


class _Aside:
    """The file that rsync writes, in a directory of its own on the landing's disk.

    What the landing has of it takes no room: it begins as a hole, and becomes one.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / "new"
        self.file = self.directory / name
        #: A directory with an older version under the same name.
        self.basis: Path | None = None
        self._forgotten = 0

    @classmethod
    def make(cls, directory: Path, name: str, landing: Landing) -> _Aside:
        """Make the directory, empty. Blocks."""
        with disk_errors():
            _sweep(directory)
            aside = cls(directory, name)
            aside.directory.mkdir(parents=True)
            if landing.offset:
                aside.file.touch()
                os.truncate(aside.file, landing.offset)
            elif PurePosixPath(landing.entry.path).suffix.lower() in SAVING_SUFFIXES:
                aside._find_basis(directory / "old", landing.path)
        return aside

    async def hand_over(self, landing: Landing) -> None:
        """Give the landing what is new. Raises as `Landing.fill`."""
        while _size_of(self.file) > landing.offset < landing.entry.size_bytes:
            await landing.fill(lambda view: self._take(view, landing.offset))

    def _take(self, view: memoryview, offset: int) -> int:
        with disk_errors(), self.file.open("r+b", buffering=0) as file:
            _make_hole(file.fileno(), self._forgotten, offset - self._forgotten)
            self._forgotten = offset
            return os.preadv(file.fileno(), [view], offset)

    def _find_basis(self, directory: Path, old: Path) -> None:
        if old.is_symlink() or not old.is_file():
            return
        directory.mkdir()
        with contextlib.suppress(OSError):
            os.link(old, directory / self.file.name)
            self.basis = directory


@contextlib.asynccontextmanager
async def _aside(landing: Landing, request: Request, path: str) -> AsyncIterator[_Aside]:
    name = path.rsplit("/", 1)[1]
    if name in ("", ".", ".."):
        raise PathEscapes(f"{path!r} names no file")
    parent = same_disk_directory(landing.root, landing.path, "rsync")
    directory = parent / partial_name(request.transfer, request.entry)
    try:
        yield await finish(lambda: _Aside.make(directory, name, landing))
    finally:
        await finish(lambda: shutil.rmtree(directory, ignore_errors=True))


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def _sweep(directory: Path) -> None:
    """Remove a directory, and those beside it that a process which died has left."""
    shutil.rmtree(directory, ignore_errors=True)
    oldest = time.time() - PARTIAL_MAX_AGE_S
    for other in directory.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if other.stat().st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)


def _make_hole(handle: int, offset: int, length: int) -> None:
    """Give back the room of these bytes; where that is not possible they stay."""
    if length > 0 and _fallocate is not None:
        _fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def _found_fallocate() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "fallocate", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function


_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_fallocate = _found_fallocate()
