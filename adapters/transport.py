"""The contract of a transport.

A transport moves the bytes of one entry from one source into one landing, once. It never retries,
never picks a source, never gives a file its final name and never decides that a digest is right:
`Landing.commit` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from adapters.errors import TransportError
from adapters.files.landing import Landing
from adapters.throttle import Throttle
from streams.values import DataEntry, Endpoint, Transport

#: Told (bytes done, bytes in all), from the event loop, not more often than the reader can bear.
Progress = Callable[[int, int], None]
#: A content in memory, or a file that holds it and may be moved.
Brought = bytes | bytearray | memoryview | Path
#: Takes contents, each with the number of its entry; it may block, and must not keep the memory.
Take = Callable[[Sequence[tuple[int, Brought]]], None]


class Request(msgspec.Struct, frozen=True):
    """One attempt: this entry, from that source, to that target."""

    transfer: str
    entry: DataEntry
    source: Endpoint
    target: Endpoint
    #: Who else holds the content or is getting it now.
    peers: tuple[Endpoint, ...] = ()
    #: An immutable file at the source that holds exactly the entry, absolute; "" if unknown.
    content_path: str = ""
    #: Where the target keeps the entry, relative to its data root.
    local_path: str = ""
    #: A push only gathers the bytes at the target, whose agent lands them then.
    gathers: bool = False
    #: No byte for this long ends the attempt.
    stall_s: float = 30.0
    connect_s: float = 30.0


class Fetches(Protocol):
    """A transport that pulls: it runs on the target."""

    name: Transport

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """Bring the bytes that `landing` lacks, from `landing.offset` on; return how many came.

        Returns once all bytes were handed to `landing`; the caller commits. Raises a
        `TransportError`; bytes handed over before that are kept for the next attempt. If it is
        cancelled, nothing is left but those bytes. Several fetches may run at once, each into its
        own landing.
        """

    async def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class FetchesMany(Protocol):
    """A transport that also pulls many small entries at about the price of one."""

    @property
    def name(self) -> Transport: ...

    async def fetch_many(
        self, requests: Sequence[Request], take: Take
    ) -> Sequence[TransportError | None]:
        """Bring small entries from one source to one target; return what each failed with, if.

        Contents are handed to `take` some at a time, by the number of their request, in any order,
        in threads but one call after the other; nothing is kept of them afterwards. Whatever ends
        the attempt early is the failure of those that did not come. Returns, or raises if it is
        cancelled, only once `take` is called no more. Several may run at once.
        """


@runtime_checkable
class Pushes(Protocol):
    """A transport that sends: it runs on the source, for targets that it alone can reach."""

    @property
    def name(self) -> Transport: ...

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """Make `file`, which holds exactly the entry and never changes, appear at the target.

        Return how many bytes moved, once the target has proven the digest and given the file its
        final name under ``request.target.data_root``. Raises a `TransportError`; then, or when it
        is cancelled, the final name is untouched, and what came is kept for the next attempt.
        `progress` is told first how much is there already, and last how far it came, also then.
        """

    async def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class PushesMany(Protocol):
    """A transport that also sends many small entries at about the price of one."""

    @property
    def name(self) -> Transport: ...

    async def push_many(
        self, requests: Sequence[Request], files: Sequence[Path]
    ) -> Sequence[int | TransportError]:
        """Send small entries from one source to one target; return how many bytes of each moved, or
        what it failed with.

        What holds for `Pushes.push` holds for each with its file; no two are of one path. Whatever
        ends the attempt early is the failure of those that the target did not say have landed: some
        of them may have. Several may run at once.
        """
