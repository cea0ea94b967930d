"""rsync under way: a process group that ends as a whole, and begins anew when its grant changes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from adapters.errors import Refused, Stalled
from adapters.ssh.rsync_words import LITERAL, SHORTEST_STALL_S, progress_in
from adapters.throttle import Throttle
from adapters.transport import Request
from adapters.workers import settled, to_its_end

TICK_S = 0.05
#: rsync writes so many bytes at once, so a slow file grows seldom.
WRITE_BYTES = 256 << 10
#: When the grant has changed this much, rsync is begun anew with it, but not all the time.
CHANGE = 0.05
ANEW_S = 1.0
GRACE_S = 3.0
_SAID_BYTES = 4 << 10
_WORD_BYTES = 128


class Run:
    """One rsync with its ssh: a process group of its own, which ends as a whole."""

    def __init__(self, process: asyncio.subprocess.Process, complaints: Reading) -> None:
        self._process = process
        self._complaints = complaints
        self._stdout = self._stderr = b""
        self.began = self.heard_at = time.monotonic()
        #: Bytes of the file that are done, as rsync says.
        self.done: int | None = None
        self.ended = asyncio.ensure_future(self._end())

    @classmethod
    async def begin(cls, words: list[str], names: bytes) -> Run:
        """Start rsync. Raises `Refused` if it is not installed."""
        complaints, theirs = await _pipe()
        try:
            process = await _started(words, theirs)
        except BaseException:
            complaints.transport.close()
            raise
        finally:
            os.close(theirs)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(names)
            process.stdin.close()
        return cls(process, complaints)

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
        found = LITERAL.search(self._stdout)
        return int(found[1]) if found else None

    async def stop(self) -> None:
        """End it, and wait until nothing of it runs any more, however often one is cancelled."""
        await to_its_end(self._stop())

    async def _stop(self) -> None:
        for which, within_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
            if self.ended.done():
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, which)
                # A stopped process hears nothing.
                os.killpg(self._process.pid, signal.SIGCONT)
            # As long as it may write, nobody else may: a dead one ends when its disk lets it.
            await asyncio.wait([self.ended], timeout=within_s)

    async def _end(self) -> None:
        complaining = asyncio.ensure_future(self._listen_to_complaints(self._complaints.reader))
        try:
            # The receiver holds this pipe too: its end is the end of both of them.
            assert self._process.stdout is not None
            await self._listen(self._process.stdout)
            await self._process.wait()
            # Whoever holds this one writes no file: ssh, and the ssh that it goes through, which
            # lets go of it only when the far end does.
            await asyncio.wait([complaining], timeout=GRACE_S)
        finally:
            complaining.cancel()
            await settled(complaining)
            self._complaints.transport.close()

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        while said := await stdout.read(_SAID_BYTES):
            self._stdout = (self._stdout + said)[-_SAID_BYTES:]
            # Of what was looked through before, only a word that had not ended then.
            done = progress_in(self._stdout[-len(said) - _WORD_BYTES :])
            if done is not None and done != self.done:
                self.done, self.heard_at = done, time.monotonic()

    async def _listen_to_complaints(self, stderr: asyncio.StreamReader) -> None:
        while said := await stderr.read(_SAID_BYTES):
            self._stderr = (self._stderr + said)[-_SAID_BYTES:]


class Reading(NamedTuple):
    """Our end of a pipe."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport


async def _pipe() -> tuple[Reading, int]:
    """A pipe that is no part of the process that writes to it, and may outlive it; its end."""
    ours, theirs = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), io.FileIO(ours)
    )
    return Reading(reader, transport), theirs


async def _started(words: list[str], stderr: int) -> asyncio.subprocess.Process:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RSYNC_")}
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=pipe,
            stdout=pipe,
            stderr=stderr,
            env=environment | {"LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise Refused(f"{words[0]} can't be run here: {error}") from error


async def through(
    begin: Callable[[float], Awaitable[Run]],
    who: str,
    what: str,
    request: Request,
    throttle: Throttle,
    follow: Callable[[Run], Awaitable[int]],
) -> Run:
    """Let rsync run to its end with the far end of `who`, begun anew whenever the grant changes.
    `what` moves, in the words of an error.

    `begin` takes the limit in bytes per second; `follow` takes in what came and says how many
    bytes are there. Raises `Stalled`; nothing runs any more afterwards, in whatever way it ends.
    """
    while True:
        limit = throttle.bytes_per_s
        run = await begin(limit)
        try:
            ended = await _watched(run, what, request, throttle, limit, follow)
        except Stalled as error:
            await run.stop()
            await follow(run)
            raise Stalled(f"{who}: {error}") from None
        finally:
            await run.stop()
        await follow(run)
        if ended:
            return run


async def _watched(
    run: Run,
    what: str,
    request: Request,
    throttle: Throttle,
    limit: float,
    follow: Callable[[Run], Awaitable[int]],
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
            said = f": {run.said.strip()}" if run.said.strip() else ""
            raise Stalled(f"no byte of {what} for {patience_s:g} s{said}")
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
