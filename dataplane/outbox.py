"""What was said while nobody could hear it: a durable spool of events on their way to the log.

One file an event, written and synced before the first try to publish it, removed after the log has
it. Any process of the node may put events in, and any may send them: the id makes it once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from adapters.workers import finish
from dataplane.turns import said
from streams.codec import Fact, decode, encode, fact_id
from streams.foreign import Unreadable, from_json
from streams.log import Log, LogError, LogFull, LogUnavailable, PermissionDenied, Receipt

logger = logging.getLogger(__name__)

#: What was begun so long ago will not be finished: storing takes less than a second.
_BEGUN_S = 3600.0


class NotKept(LogError):
    """Neither the bus nor this machine's disk took an event: it is said nowhere. Say it again."""


class _Letter(msgspec.Struct, frozen=True):
    subject: str
    headers: dict[str, str]
    body: msgspec.Raw


class Outbox:
    """A directory of events that the log may not have yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, fact: Fact) -> Path:
        """Store an event durably; where it lies. Blocks.

        Raises ValueError if it is not well formed, OSError if the disk does not take it.
        """
        headers, body = encode(fact, time.time())
        letter = msgspec.json.encode(_Letter(fact.subject, headers, msgspec.Raw(body)))
        self._directory.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{fact_id(fact.id)}"
        temporary, final = self._directory / f".{name}", self._directory / f"{name}.json"
        try:
            with temporary.open("wb") as file:
                file.write(letter)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(self._directory)
        return final

    def waiting(self) -> Iterator[Path]:
        """Events that were not sent yet, oldest first."""
        if self._directory.is_dir():
            yield from sorted(self._directory.glob("[0-9]*.json"))

    def _sweep(self) -> None:
        """Remove what processes that were killed had begun to store; nobody was told it was."""
        if self._directory.is_dir():
            for path in self._directory.glob(".[0-9]*"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < time.time() - _BEGUN_S:
                        path.unlink()

    def read(self, path: Path) -> Fact | None:
        """A stored event; None if somebody else has sent it by now, or it can't be read."""
        try:
            letter = from_json(path.read_bytes(), _Letter)
        except FileNotFoundError:
            return None
        except Unreadable as error:
            logger.error("outbox: %s is damaged and set aside: %s", path, error)
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_suffix(".damaged"))
            return None
        recorded = decode(0, 0.0, letter.subject, letter.headers, bytes(letter.body))
        if recorded.event is None:
            logger.error("outbox: %s can't be published: %s", path, recorded.problem)
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_suffix(".damaged"))
            return None
        chain = letter.headers.get("ce-correlationid", "")
        return Fact(
            recorded.event,
            letter.subject,
            recorded.id,
            chain,
            recorded.cause,
            recorded.owner,
            recorded.traceparent,
        )

    def done(self, path: Path) -> None:
        """The log has it."""
        path.unlink(missing_ok=True)

    async def drain(self, log: Log) -> int:
        """Send what waits, oldest first; how many were sent. Stops where the log can't be reached.

        An event the bus refuses for good stays, is said in the log of this process, and does not
        keep the others waiting.
        """
        self._sweep()
        sent = 0
        for path in self.waiting():
            fact = self.read(path)
            if fact is None:
                continue
            try:
                await said(log, fact)
            except PermissionDenied as error:
                logger.error("outbox: %s was refused by the bus: %s", path, error)
                continue
            except (LogUnavailable, LogFull) as error:
                logger.warning("outbox: %d sent, the rest waits: %s", sent, error)
                break
            self.done(path)
            sent += 1
        return sent

    async def publish(self, log: Log, fact: Fact) -> Receipt:
        """Store, send, forget. If sending fails it stays stored, and the error says so.

        Where the disk takes nothing it is sent all the same: that the disk is full is itself news.
        """
        path = await finish(lambda: self.store(fact))
        receipt = await said(log, fact)
        if path is not None:
            self.done(path)
        return receipt

    def store(self, fact: Fact) -> Path | None:
        """As `put`; None, and a word in this process's log, where the disk does not take it."""
        try:
            return self.put(fact)
        except OSError as error:
            logger.error("outbox: %s can't be stored: %s", fact.id, error)
            return None


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
