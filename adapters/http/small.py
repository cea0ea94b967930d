"""Small entries between two nodes at the same time, in one question and one answer.

What comes is handed on as it is read; nothing is believed but the sizes that were asked for. What
is sent has landed once the target has said so of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from adapters.errors import EntryMissing, Interrupted, Refused, TransportError, Unreachable
from adapters.files.digest import named
from adapters.http.arriving import LACKING, Failed, Sent
from adapters.http.batches import FRAME, Contents, encode_list, frames
from adapters.http.peer import Peer
from adapters.http.receiving import error_of
from adapters.http.signing import BATCH_ROUTE, Signer
from adapters.transport import Request, Take
from adapters.workers import PEERS, finish, turn
from streams.foreign import from_json
from streams.values import Endpoint

#: A source that lets us wait so long for a piece has its bytes taken without a turn.
_SLOW_S = 0.01
#: What a target says of a batch.
_MOST_SAID_BYTES = 4 << 20


class Access(NamedTuple):
    """Who asks, and how it is proven."""

    signer: Signer
    #: A question is signed now and may be asked for so long.
    now: float
    ttl_s: float
    #: Whom to trust over TLS; None: whom this machine trusts.
    context: ssl.SSLContext | None = None

    def url(self, base: str, what: bytes, target: str, verb: str = "GET") -> str:
        """Where a list of entries, and nothing else, may be asked for or sent."""
        digest = named(hashlib.sha256(what))
        return self.signer.url(
            base, digest, "", target, self.now, self.ttl_s, verb, route=BATCH_ROUTE
        )


async def fetch_small(
    access: Access, requests: Sequence[Request], take: Take
) -> list[TransportError | None]:
    """As `FetchesMany.fetch_many`; at most a batch, of entries that are small."""
    first = requests[0]
    if not first.source.http_url:
        return [Unreachable(f"{first.source.node} has no file server") for _ in requests]
    peer = _peer(first.source, first, access)
    failed: list[TransportError | None] = [Interrupted(f"{peer.node}: given up") for _ in requests]
    body = encode_list([request.entry.checksum for request in requests])
    try:
        url = access.url(peer.base, body, first.target.node)
    except Refused as error:
        return [Refused(str(error)) for _ in requests]

    def missing(path: str) -> EntryMissing:
        return EntryMissing(f"{peer.node} holds no {path} with this content any more")

    def taken(some: Sequence[tuple[int, memoryview | None]]) -> None:
        if came := [(number, data) for number, data in some if data is not None]:
            take(came)
        for number, data in some:
            failed[number] = None if data is not None else missing(requests[number].entry.path)

    def receive() -> None:
        contents = Contents([request.entry.size_bytes for request in requests], taken)
        try:
            peer.ask(url, method="POST", body=body)
            with contextlib.ExitStack() as held:
                held.enter_context(turn())
                while not contents.over:
                    began = time.monotonic()
                    count = peer.some(contents.room)
                    if time.monotonic() - began > _SLOW_S:
                        # There is time for others while its bytes come.
                        held.close()
                    contents.filled(count)
        except TransportError as error:
            failed[contents.came :] = [type(error)(str(error)) for _ in requests[contents.came :]]
        finally:
            peer.close()

    await finish(receive, executor=PEERS, hurry=peer.abort)
    return failed


async def push_small(
    access: Access, requests: Sequence[Request], files: Sequence[Path]
) -> list[int | TransportError]:
    """As `PushesMany.push_many`; at most a batch, of entries that are small."""
    first = requests[0]
    if not first.target.http_url:
        return [Unreachable(f"{first.target.node} has no file server") for _ in requests]
    peer = _peer(first.target, first, access)
    held = {one.entry.checksum: file for one, file in zip(requests, files, strict=True)}

    def send() -> list[int | TransportError]:
        outcomes: list[int | TransportError] = [0] * len(requests)
        left = list(range(len(requests)))
        try:
            # What is there already, or may not come, moves no byte.
            for contents in (None, held):
                asked = [requests[number] for number in left]
                said = dict(zip(left, _say(peer, access, asked, contents), strict=True))
                for number, failed in said.items():
                    outcomes[number] = _outcome(peer, failed, requests[number], contents)
                left = [number for number, failed in said.items() if failed == LACKING]
                if not left:
                    break
        except TransportError as error:
            for number in left:
                outcomes[number] = type(error)(str(error))
        finally:
            peer.close()
        return outcomes

    return await finish(send, executor=PEERS, hurry=peer.abort)


def _say(
    peer: Peer, access: Access, requests: Sequence[Request], held: dict[str, Path] | None
) -> list[Failed | None]:
    """Say what is to be sent, with contents if any are held; what the target says. Blocks."""
    said = msgspec.json.encode([Sent(one.entry, one.transfer) for one in requests])
    url = access.url(peer.base, said, requests[0].target.node, "PUT")
    head = FRAME.pack(len(said)) + said
    if held is None:
        peer.ask(url, method="PUT", body=head)
    else:
        contents = frames([one.entry.checksum for one in requests], held.get)
        peer.ask(url, method="PUT", body=chain([head], contents))
    try:
        told = from_json(peer.read(_MOST_SAID_BYTES), list[Failed | None])
    except ValueError as error:
        raise Interrupted(f"{peer.node} does not say what has landed: {error}") from error
    if len(told) != len(requests):
        raise Interrupted(f"{peer.node} speaks of {len(told)} of {len(requests)} entries")
    return told


def _outcome(
    peer: Peer, failed: Failed | None, request: Request, sent: object
) -> int | TransportError:
    """What came of one entry: nothing moved yet where only a question was asked."""
    if failed is None:
        return request.entry.size_bytes if sent is not None else 0
    if failed == LACKING:
        return Interrupted(f"{peer.node} did not take {request.entry.path}")
    return error_of(failed.error_class, f"{peer.node}: {failed.text}")


def _peer(there: Endpoint, request: Request, access: Access) -> Peer:
    return Peer(there.node, there.http_url, request.connect_s, request.stall_s, access.context)
