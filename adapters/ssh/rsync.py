"""The transport of large files: the real rsync over the real ssh client.

It makes one attempt and never retries. rsync never sees a final name: it adds to the landing's own
file, or writes one aside, and the landing takes in what comes while it grows, so that the digest is
known when the last byte is. An exit code of 0 proves nothing here; the digest does.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from adapters.errors import EntryMissing, Interrupted, Stalled, TransportError
from adapters.files.landing import Landing
from adapters.ssh.aside import set_aside, size_of
from adapters.ssh.channel import Channel
from adapters.ssh.connections import Connections, SshOptions, source_file
from adapters.ssh.push import FOLLOWED_FROM_BYTES, Place, delivered, prepared
from adapters.ssh.rsync_many import fetch_small
from adapters.ssh.rsync_run import Run, through
from adapters.ssh.rsync_words import failure, pull_words, push_words
from adapters.ssh.sharing import Sharing, Way
from adapters.telling import Telling
from adapters.throttle import Throttle
from adapters.transport import Progress, Request, Take
from adapters.workers import finish
from streams.identity import PathRules
from streams.values import Endpoint, Transport

#: Processes at once, each with its own ssh, whatever is asked for.
AT_ONCE = 12
#: Up to this, a file goes through a connection that others use too.
SHARED_BELOW_BYTES = 16 << 20
#: How long a far end is waited for that is to say, after a failure, how much it has.
ASKED_S = 5.0


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
        followed_from: int = FOLLOWED_FROM_BYTES,
        root: Path | None = None,
    ) -> None:
        """`root`: on its disk, and below it, many small files are gathered; best a data root."""
        self._connections = Connections(options)
        self._sharing = Sharing(options, ssh)
        self._followed_from = followed_from
        self._rsync = rsync
        self._rules = rules or PathRules()
        self._root = (root or Path(tempfile.gettempdir())).resolve()
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
        telling = Telling(progress, request.entry.size_bytes)
        async with (
            self._slots,
            self._way(request.source, request) as way,
            set_aside(landing, request, path) as aside,
        ):
            begun, runs = landing.offset, 0

            async def begin(limit: float) -> Run:
                nonlocal runs
                runs += 1
                words = [self._rsync, *pull_words(request, way.words, limit, aside)]
                return await Run.begin(words, path.encode(errors="surrogateescape") + b"\0")

            async def follow(_: Run) -> int:
                await aside.hand_over(landing)
                telling.tell(landing.offset)
                return landing.offset

            run = await through(
                begin, request.source.node, request.entry.path, request, throttle, follow
            )
            _judge(run, request, landing, begun)
            if aside.basis is not None and runs == 1 and run.literal is not None:
                return run.literal
            return landing.offset - begun

    async def fetch_many(
        self, requests: Sequence[Request], take: Take
    ) -> Sequence[TransportError | None]:
        """As `FetchesMany.fetch_many`, by one rsync."""
        first, rules = requests[0], self._rules
        try:
            async with self._slots, self._way(first.source, first) as way:
                failed = await fetch_small(
                    self._rsync, way.words, requests, rules, take, self._root
                )
                for error in failed:
                    way.failed(error)
                return failed
        except TransportError as error:
            return [type(error)(str(error)) for _ in requests]

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """As `Pushes.push`. What came is kept at the target, bound to transfer and digest."""
        size = request.entry.size_bytes
        if await finish(lambda: size_of(file)) != size:
            raise EntryMissing(f"{file} can't be sent: it is no file of {size} bytes")

        def opens(command: str) -> contextlib.AbstractAsyncContextManager[Channel]:
            return self._connections.run(request.target, request, command)

        async with self._slots:
            place = await prepared(opens, request, self._rules, "rsync")

            async def send() -> bool:
                with Telling(progress, size) as telling:
                    telling.tell(place.have)
                    try:
                        runs = await self._send(request, file, place, throttle, telling)
                        # A second rsync may begin before the far end of the first has ended; and
                        # for what a shorter file lacks, who reads behind would wait without end.
                        return runs == 1 and await finish(lambda: size_of(file)) == size
                    except (Interrupted, Stalled):
                        # rsync speaks once a second, and not of its end: the target knows.
                        with contextlib.suppress(TransportError, TimeoutError):
                            async with asyncio.timeout(ASKED_S):
                                there = await prepared(opens, request, self._rules, "rsync")
                            telling.tell(there.have)
                        raise

            try:
                await delivered(opens, request, self._rules, place, send, self._followed_from)
            except Interrupted as error:
                # rsync sends what it finds, and says nothing of it.
                if await finish(lambda: size_of(file)) != size:
                    raise EntryMissing(
                        f"{file} can't be sent: it is no file of {size} bytes any more"
                    ) from error
                raise
            return size - place.have

    async def close(self) -> None:
        """Let go of connections."""
        await self._sharing.close()
        await self._connections.close()

    async def _send(
        self, request: Request, file: Path, place: Place, throttle: Throttle, telling: Telling
    ) -> int:
        """Send what is lacking; how many rsyncs it took."""
        runs = 0

        async def begin(limit: float) -> Run:
            nonlocal place, runs
            runs += 1
            words = [self._rsync, *push_words(request, way.words, limit, file, place)]
            # If it is begun anew, something is there.
            place = msgspec.structs.replace(place, have=max(1, place.have))
            return await Run.begin(words, b"")

        async def follow(run: Run) -> int:
            telling.tell(max(place.have, run.done or 0))
            return run.done or 0

        async with self._way(request.target, request) as way:
            run = await through(
                begin, request.target.node, request.entry.path, request, throttle, follow
            )
            if run.status != 0:
                raise failure(run.status, run.said, request.target.node, request.source.node)
        return runs

    def _way(
        self, endpoint: Endpoint, request: Request
    ) -> contextlib.AbstractAsyncContextManager[Way]:
        """How ssh gets there: what is large has a connection, and a core, of its own."""
        return self._sharing.way(
            endpoint, request, alone=request.entry.size_bytes > SHARED_BELOW_BYTES
        )


def _judge(run: Run, request: Request, landing: Landing, begun: int) -> None:
    """Raise unless rsync brought all that was lacking."""
    who, size = request.source.node, request.entry.size_bytes
    if run.status != 0:
        raise failure(run.status, run.said, who)
    if landing.offset == begun:
        raise EntryMissing(f"{who} has no {request.entry.path} of {size} bytes")
    if landing.offset < size:
        so_far = f"{landing.offset} of {size} bytes"
        raise Interrupted(f"{who} ended {request.entry.path} after {so_far}")
