"""Blocks of one content from its source and from all who fetch it too, each checked as it comes.

A peer that fails is asked less or no more; the attempt has failed once nobody is left. `swarm`
decides who is asked for what; here it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

from adapters.errors import (
    DigestMismatch,
    EntryMissing,
    Interrupted,
    Refused,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.files.blocks import piece_blocks_of
from adapters.files.scattered import Scattered
from adapters.http.peer import Peer
from adapters.http.signing import ENTRY_ROUTE, HAVE_ROUTE
from adapters.p2p.asking import Asking
from adapters.p2p.gossip import Gossip, Having, bits_in, subject_of
from adapters.p2p.swarm import SHORTEST_RUN_BYTES, Kind, Swarm, next_run_bytes
from adapters.workers import PEERS, finish
from streams.values import Endpoint

#: Read at once, and more of a run that is long because its link is fast: each turn costs as much as
#: a quarter of a megabyte. Unless the rate is limited to less: then so much of it, in seconds.
CHUNK_BYTES, LONGEST_CHUNK_BYTES = 1 << 20, 4 << 20
CHUNKS_OF_RUN = 4
CHUNK_S = 0.1
#: A second connection to the only source pays from here on.
TWO_CONNECTIONS_BYTES = 8 << 20
#: Bad blocks of one piece from one peer, after which nothing of it is believed any more.
MOST_BAD = 3
TELL_GAP_S, TELL_AT_LEAST_S = 0.02, 1.0
_LOOK_S = 0.2
#: Bells that are no peer's.
_TELLING = "\0telling"
_WATCHING = "\0watching"
_HAVE_BYTES = 1 << 20


class Swarming:
    """Brings blocks from the source and from all who fetch the same content."""

    def __init__(self, asking: Asking, scattered: Scattered) -> None:
        self._asking = asking
        self._request = asking.request
        self._scattered = scattered
        self._map = scattered.map
        self._step = piece_blocks_of(self._map.size_bytes)
        self._count = -(-self._map.count // self._step)
        lacking = [n for n in range(self._count) if not self._is_here(n)]
        self._swarm = Swarm(self._request.target.node, self._count, lacking)
        #: Rung for a peer's worker when there may be something to ask it for.
        self._bells: dict[str, asyncio.Event] = {}
        self._workers: dict[str, list[asyncio.Task[None]]] = {}
        self._errors: dict[str, TransportError] = {}
        self._bad: dict[tuple[str, int], int] = {}
        self._bringing = 0
        self._progressed_at = time.monotonic()

    async def run(self) -> None:
        """Bring all that is lacking. Raises what the source, or the last peer, did wrong."""
        request = self._request
        source = request.source
        if source.http_url:
            self._swarm.joins(source.node, Kind.SOURCE, time.monotonic())
            lacking = self._map.size_bytes - self._scattered.held_bytes
            alone = not request.peers and lacking >= TWO_CONNECTIONS_BYTES
            self._begin(source, 2 if alone else 1)
        for place in request.peers:
            if place.node not in (source.node, request.target.node):
                self._swarm.joins(place.node, Kind.RECEIVER, time.monotonic())
                self._begin(place, 1)
        gossiping = [asyncio.create_task(one) for one in self._gossip()]
        try:
            await self._until_done()
        finally:
            tasks = [task for some in self._workers.values() for task in some] + gossiping
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_done(self) -> None:
        while not self._swarm.done:
            self._raise_failed()
            now = time.monotonic()
            silent = not self._bringing and now - self._progressed_at > self._request.stall_s
            if silent or not self._swarm.hopeful(now):
                raise self._failure()
            await self._rung(_WATCHING)

    def _failure(self) -> TransportError:
        """Why nothing comes any more: the source's own reason first."""
        own = self._errors.get(self._request.source.node)
        wrong = [one for one in self._errors.values() if isinstance(one, DigestMismatch)]
        if own is not None:
            return own
        nobody = Stalled(f"nobody gives what is lacking of {self._request.entry.path}")
        return next(iter(wrong or self._errors.values()), nobody)

    def _raise_failed(self) -> None:
        """A worker that ended by itself has met a fault of this node: its disk, or our own."""
        for some in self._workers.values():
            for task in some:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error

    def _begin(self, place: Endpoint, connections: int) -> None:
        if place.node not in self._workers and place.http_url:
            self._workers[place.node] = [
                asyncio.create_task(self._work(place, first=number == 0))
                for number in range(connections)
            ]

    async def _rung(self, who: str) -> None:
        """Wait until a bell was rung, or a moment. Few are rung: there are many words."""
        bell = self._bells.setdefault(who, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await bell.wait()
        bell.clear()

    def _ring(self, *whom: str) -> None:
        for one in whom:
            if one in self._bells:
                self._bells[one].set()

    # One peer

    async def _work(self, place: Endpoint, first: bool) -> None:
        """Ask one peer for one piece after the other."""
        async with self._asking.peer(place) as peer:
            if first and place.node != self._request.source.node:
                with contextlib.suppress(TransportError):
                    await self._ask_having(peer)
            run_bytes = SHORTEST_RUN_BYTES
            while not self._swarm.done:
                began = time.monotonic()
                piece = self._swarm.next(peer.node, began)
                if piece is None:
                    await self._rung(peer.node)
                    continue
                came = await self._try(peer, self._run_from(peer, piece, run_bytes))
                run_bytes = next_run_bytes(run_bytes, time.monotonic() - began if came else None)

    async def _ask_having(self, peer: Peer) -> None:
        said = await self._asking.ask(peer, HAVE_ROUTE, lambda: peer.read(_HAVE_BYTES))
        having = Having.decode(said)
        if having is not None:
            self._heard(peer.node, having)

    def _heard(self, node: str, having: Having) -> None:
        pieces = 0 if having.whole else bits_in(having.pieces, self._count)
        if self._swarm.heard(node, pieces, having.whole, time.monotonic()):
            self._ring(node)

    def _run_from(self, peer: Peer, piece: int, run_bytes: int) -> list[int]:
        """A piece and those right behind it that may be asked for together."""
        run, now = [piece], time.monotonic()
        most = run_bytes // (self._step * self._map.block_bytes)
        while len(run) < most and self._swarm.extend(peer.node, run[-1] + 1, now):
            run.append(run[-1] + 1)
        return run

    async def _try(self, peer: Peer, run: list[int]) -> bool:
        """Ask a peer for a run of pieces; whether all that was asked for came."""
        self._bringing += 1
        node, source = peer.node, peer.node == self._request.source.node
        try:
            await self._bring(peer, run)
            return True
        except EntryMissing as error:
            self._errors[node] = error
            if source:
                self._swarm.failed(node, time.monotonic(), for_good=True)
            else:
                self._swarm.lost(node, run[0], time.monotonic())
        except (Refused, Unreachable) as error:
            self._errors[node] = error
            self._swarm.failed(node, time.monotonic(), for_good=source)
        except (Stalled, Interrupted, DigestMismatch) as error:
            self._errors[node] = error
            self._swarm.failed(
                node,
                time.monotonic(),
                for_good=self._is_liar(node, run),
                silent=isinstance(error, Stalled),
            )
        finally:
            self._bringing -= 1
            for piece in run:
                self._swarm.settled(node, piece)
            if any(self._swarm.lacks(piece) for piece in run):
                # Others may be asked for it now.
                self._ring(*self._bells)
        return False

    def _is_liar(self, node: str, run: list[int]) -> bool:
        return any(self._bad.get((node, piece), 0) >= MOST_BAD for piece in run)

    async def _bring(self, peer: Peer, run: list[int]) -> None:
        """Bring the first gap in a run of pieces. Raises what the peer did wrong."""
        first, count = self._gap(run)
        if not count:
            self._note(run)
            return
        offset = first * self._map.block_bytes
        length = min(count * self._map.block_bytes, self._map.size_bytes - offset)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        span = f"bytes {offset}-{offset + length - 1}/{self._map.size_bytes}"
        check = partial(_check, peer, self._request.entry.checksum, span)
        await self._asking.ask(peer, ENTRY_ROUTE, check, headers=headers)
        await self._receive(peer, run, first, count)

    async def _receive(self, peer: Peer, run: list[int], first: int, count: int) -> None:
        at = first
        while at < first + count:
            some = min(self._chunk_blocks(count), first + count - at)
            came, bad, error = await finish(
                partial(self._take, peer, at, some),
                executor=PEERS,
                hurry=peer.abort,
            )
            if came:
                self._progressed_at = time.monotonic()
                self._note(run)
            await self._asking.came(came)
            if bad is not None:
                piece = bad // self._step
                self._bad[peer.node, piece] = self._bad.get((peer.node, piece), 0) + 1
                raise DigestMismatch(
                    f"{peer.node}: block {bad} of {peer.about} is not what it should be"
                )
            if error is not None:
                raise error
            self._swarm.sound(peer.node)
            at += some

    def _take(
        self, peer: Peer, first: int, count: int
    ) -> tuple[int, int | None, TransportError | None]:
        """Read blocks and put them: bytes that came, a block that was bad, what ended it.

        All are read first: each call to the system may have to wait for the interpreter.
        """
        (begin, _), (last, length) = self._map.span(first), self._map.span(first + count - 1)
        view = peer.room(last + length - begin)
        came, error = peer.fill(view)
        if error is not None:
            # What came of a block that broke off is not that block.
            came -= came % self._map.block_bytes
        wrong = self._scattered.put(first, view[:came])
        if wrong:
            peer.close()
            return came, wrong[0], None
        return came, None, error

    def _chunk_blocks(self, count: int) -> int:
        """How many of so many blocks in a row are read at once."""
        rate = self._asking.throttle.bytes_per_s
        share = count * self._map.block_bytes // CHUNKS_OF_RUN
        chunk = min(max(CHUNK_BYTES, share), LONGEST_CHUNK_BYTES)
        chunk = min(chunk, int(rate * CHUNK_S)) if rate else chunk
        return max(1, chunk // self._map.block_bytes)

    def _gap(self, run: list[int]) -> tuple[int, int]:
        """The first blocks in a row that are lacking in a run of pieces."""
        start, end = run[0] * self._step, min((run[-1] + 1) * self._step, self._map.count)
        have = self._scattered.have()
        first = have.find(0, start, end)
        if first < 0:
            return start, 0
        there = have.find(1, first, end)
        return first, (end if there < 0 else there) - first

    def _note(self, pieces: list[int]) -> None:
        """Take note of pieces that are here by now."""
        for piece in pieces:
            if self._is_here(piece):
                self._swarm.got(piece, time.monotonic())
        self._ring(_TELLING)
        if self._swarm.done:
            self._ring(*self._bells)
        elif self._swarm.nearly_done:
            self._ring(self._request.source.node)

    def _is_here(self, piece: int) -> bool:
        return self._scattered.holds(piece * self._step, self._step)

    # Gossip

    def _gossip(self) -> list[Coroutine[Any, Any, None]]:
        gossip = self._asking.around.gossip
        return [] if gossip is None else [self._listen(gossip), self._tell(gossip)]

    async def _listen(self, gossip: Gossip) -> None:
        me, source = self._request.target.node, self._request.source.node
        async with aclosing(gossip.listen(subject_of(self._request.entry.checksum))) as words:
            async for _, body in words:
                having = Having.decode(body)
                if having is not None and having.node not in (me, source):
                    self._heard(having.node, having)
                    self._begin(Endpoint(node=having.node, http_url=having.url), 1)

    async def _tell(self, gossip: Gossip) -> None:
        """Say what is here whenever it changed, and now and then that we are."""
        subject, target = subject_of(self._request.entry.checksum), self._request.target
        told, told_at = b"", 0.0
        while target.http_url:
            whole = self._scattered.whole
            pieces = b"" if whole else self._swarm.here.to_bytes(-(-self._count // 8), "little")
            now = time.monotonic()
            if pieces != told or whole or now - told_at > TELL_AT_LEAST_S:
                told, told_at = pieces, now
                having = Having(target.node, target.http_url, whole, pieces)
                gossip.tell(subject, having.encode())
            await asyncio.sleep(TELL_GAP_S)
            await self._rung(_TELLING)


def _check(peer: Peer, checksum: str, span: str) -> None:
    """Raise unless what is answered is this span of this content."""
    answer = peer.answer
    if answer is None or answer.status != 206 or answer.getheader("Content-Range") != span:
        raise EntryMissing(f"{peer.node} does not offer {span} of {peer.about}")
    if answer.getheader("ETag") != f'"{checksum}"':
        raise EntryMissing(f"{peer.node} offers other content of {peer.about} than {checksum}")
