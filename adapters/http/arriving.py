"""Many small entries that are pushed here in one question: each for itself, landed as a group.

What holds for one that is pushed alone holds for each: it is refused before its bytes are taken
where it may not come, and known as received before anybody is told. It never believes a size, nor
gives a name to bytes that are not an entry's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
from aiohttp import ClientConnectionError, StreamReader, web

from adapters.errors import EntryMissing, Interrupted, Refused, Stalled, TransportError
from adapters.files.digest import named
from adapters.files.group import Group, Wanted
from adapters.files.landing import Landed
from adapters.files.partial import disk_errors
from adapters.http.batches import BATCH_BYTES, FRAME, MOST_FRAMES, Contents
from adapters.http.receiving import Receiver, refusal
from adapters.workers import finish, turn
from streams.foreign import from_json
from streams.values import SMALL_BYTES, DataEntry

#: What is said of all entries of a batch before their contents.
MOST_LIST_BYTES = 4 << 20
#: So much is taken from the wire before a thread writes it down.
_HELD_BYTES = 1 << 20
_BROKEN_OFF = (ClientConnectionError, ConnectionError, web.RequestPayloadError)


class Sent(msgspec.Struct, frozen=True, gc=False):
    """What a sender says of one entry of a batch."""

    entry: DataEntry
    transfer: str


class Failed(msgspec.Struct, frozen=True, gc=False):
    """Why an entry of a batch did not land: an error by its class, and its text."""

    error_class: str
    text: str


#: What is said of an entry that may come, where only the list was sent.
LACKING = Failed("", "it is not here yet")


async def answer_batch(receiver: Receiver, request: web.Request, checksum: str) -> web.Response:
    """Take what is sent, and say of each entry, in order, why it did not land; null if it did.

    Who sends a list alone is told which of it is `LACKING`. The URL was proven before: for who
    sends a list with this digest.
    """
    try:
        said = await _read_list(request.content, receiver.stall_s)
        sent = _listed(said, checksum)
        parts = _parts(receiver, sent)
        if request.content_length == FRAME.size + len(said):
            for part in parts:
                await part.ask()
        else:
            await _take(receiver, request.content, sent, parts)
        told_of = {number: said for part in parts for number, said in part.told.items()}
    except TransportError as error:
        return refusal(error)
    told = [told_of.get(number) for number in range(len(sent))]
    return web.Response(body=msgspec.json.encode(told), content_type="application/json")


def _told(error: TransportError) -> Failed:
    return Failed(type(error).__name__, str(error))


def _parts(receiver: Receiver, sent: Sequence[Sent]) -> list[_Part]:
    """What is sent, by who takes it."""
    # A transfer that is only passed on goes elsewhere than the node's own.
    of_whom: dict[Receiver, dict[int, DataEntry]] = {}
    for number, one in enumerate(sent):
        of_whom.setdefault(receiver.of(one.transfer), {})[number] = one.entry
    return [_Part(taker, entries) for taker, entries in of_whom.items()]


async def _read_list(content: StreamReader, stall_s: float) -> bytes:
    (size,) = FRAME.unpack(await _exactly(content, FRAME.size, stall_s))
    if not 0 <= size <= MOST_LIST_BYTES:
        raise Refused(f"a list of {size} bytes is none of a batch")
    return await _exactly(content, size, stall_s)


def _listed(said: bytes, checksum: str) -> list[Sent]:
    """What is to come. Raises `Refused` unless it is the list that was signed for, and small."""
    if named(hashlib.sha256(said)) != checksum:
        raise Refused("the URL was signed for another list")
    try:
        sent = from_json(said, list[Sent])
    except ValueError as error:
        raise Refused(f"what is sent is no list of entries: {error}") from error
    if len({one.entry.path for one in sent}) < len(sent):
        raise Refused("a path is twice in a batch")
    sizes = [one.entry.size_bytes for one in sent]
    if len(sizes) > MOST_FRAMES or sum(sizes) > BATCH_BYTES or max(sizes, default=0) > SMALL_BYTES:
        raise Refused(f"{len(sizes)} entries of {sum(sizes)} bytes are no batch")
    return sent


async def _take(
    receiver: Receiver, content: StreamReader, sent: Sequence[Sent], parts: Sequence[_Part]
) -> None:
    """Take the contents, and let them land."""
    try:
        for part in parts:
            await part.begin()
        await _fill(receiver, content, sent, parts)
        for part in parts:
            await part.land()
    finally:
        for part in parts:
            await part.close()


async def _fill(
    receiver: Receiver, content: StreamReader, sent: Sequence[Sent], parts: Sequence[_Part]
) -> None:
    """Write down what comes. Where it breaks off, what came before is kept."""

    def take(some: Sequence[tuple[int, memoryview | None]]) -> None:
        for part in parts:
            part.put(some)

    contents = Contents([one.entry.size_bytes for one in sent], take)
    error: TransportError | None = None
    while error is None and not contents.over:
        pieces, error = await _gathered(content, receiver.stall_s)
        try:
            await finish(partial(_feed, contents, pieces))
        except Interrupted as malformed:
            error = malformed
    if error is not None:
        for part in parts:
            part.error = error


def _feed(contents: Contents, pieces: Sequence[bytes]) -> None:
    with turn():
        for piece in pieces:
            contents.feed(piece)


async def _gathered(
    content: StreamReader, stall_s: float
) -> tuple[list[bytes], TransportError | None]:
    """The next bytes, worth a thread's while unless no more come; then, what it ended with."""
    pieces: list[bytes] = []
    held = 0
    try:
        while held < _HELD_BYTES:
            async with asyncio.timeout(stall_s):
                piece, _ = await content.readchunk()
            if not piece and content.at_eof():
                return pieces, Interrupted("the sender sent no more")
            pieces.append(piece)
            held += len(piece)
    except TimeoutError:
        return pieces, Stalled(f"no byte came for {stall_s:g} s")
    except _BROKEN_OFF as error:
        return pieces, Interrupted(f"the sender broke off: {error}")
    return pieces, None


async def _exactly(content: StreamReader, count: int, stall_s: float) -> bytes:
    try:
        async with asyncio.timeout(stall_s):
            return await content.readexactly(count)
    except TimeoutError:
        raise Stalled(f"no byte came for {stall_s:g} s") from None
    except (asyncio.IncompleteReadError, *_BROKEN_OFF) as error:
        raise Interrupted(f"the sender broke off: {error}") from error


class _Part:
    """Those entries of a batch that one receiver takes, by their number in the batch."""

    def __init__(self, receiver: Receiver, entries: Mapping[int, DataEntry]) -> None:
        self._receiver = receiver
        self.entries = entries
        #: Of those that are not here: why.
        self.told: dict[int, Failed] = {}
        #: What becomes of those that did not come.
        self.error: TransportError = Interrupted("the sender broke off")
        #: Those that may come, and their number in the group.
        self._coming: dict[int, int] = {}
        self._group: Group | None = None

    async def ask(self) -> None:
        """See which are here, which are `LACKING`, and which may not come."""
        found = await self._receiver.arrivals.all_there(list(self.entries.values()))
        for number, there in zip(self.entries, found, strict=True):
            if there is None:
                self.told[number] = LACKING
            elif isinstance(there, TransportError):
                self.told[number] = _told(there)

    async def begin(self) -> None:
        """Make room for those that may come."""
        await self.ask()
        lacking = [number for number, said in self.told.items() if said is LACKING]
        self._coming = {number: index for index, number in enumerate(lacking)}
        receiver = self._receiver
        wanted = [
            Wanted(entry, receiver.arrivals.local(entry))
            for entry in map(self.entries.__getitem__, lacking)
        ]
        with disk_errors():
            self._group = await finish(lambda: Group(receiver.root, wanted, receiver.rules))

    def put(self, some: Sequence[tuple[int, memoryview | None]]) -> None:
        """Contents have come, or will not; what is not of this part is left to others. Blocks."""
        group = self._group
        assert group is not None
        mine = [(self._coming[number], data) for number, data in some if number in self._coming]
        group.put([(index, data) for index, data in mine if data is not None])
        for index, data in mine:
            if data is None:
                path = group.wanted[index].entry.path
                group.fail(index, EntryMissing(f"the sender has no such {path}"))

    async def land(self) -> None:
        """Give names to those that came."""
        group = self._group
        assert group is not None
        for index in set(group.open) - set(group.gathered):
            group.fail(index, self.error)
        await self._receiver.arrivals.land_all(group)
        for number, index in self._coming.items():
            outcome = group.outcomes[index]
            if isinstance(outcome, Landed):
                del self.told[number]
                await self._receiver.tell(self.entries[number], outcome)
            else:
                self.told[number] = _told(outcome or self.error)

    async def close(self) -> None:
        """Let go of what has no name."""
        if self._group is not None:
            await finish(self._group.close)
