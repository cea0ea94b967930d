"""Where a log is read from: the live one, an archive, or an exported file.

What it gives can only read: whoever looks at the past can't write to it, whatever he asks for.
Where no bus answers the live log is read from where it lies: the store of this machine's own bus
while nobody runs it, or the archive.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from adapters.blobs import Blobs, blobs_at
from adapters.errors import EntryMissing
from dataplane.api import open_log
from dataplane.audit.archive import archived, joined
from dataplane.audit.exporting import open_exported
from dataplane.config import ConfigError, DataPlaneConfig
from dataplane.holding import DirectoryInUse, hold
from streams.codec import Recorded
from streams.jetstream import JetStreamLog
from streams.kept import KeptLog
from streams.log import LogState, LogUnavailable, StoredLog
from streams.segments import MANIFEST_NAME
from streams.server import EmbeddedServer
from streams.stored import Stored

logger = logging.getLogger(__name__)
#: The word for the live log.
LIVE = "nats"


class ReadOnly:
    """A log with nothing but its reading half; see `streams.log.StoredLog`."""

    def __init__(self, log: StoredLog) -> None:
        self._log = log

    async def state(self) -> LogState:
        """As `ReadingLog.state`."""
        return await self._log.state()

    async def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        """As `ReadingLog.read`."""
        reading = self._log.read(after=after, until=until, subjects=subjects)
        async with aclosing(reading) as batches:
            async for batch in batches:
                yield batch

    async def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        """As `StoredLog.messages`."""
        async with aclosing(self._log.messages(after=after, until=until)) as batches:
            async for batch in batches:
                yield batch

    async def get(self, sequence: int) -> Recorded | None:
        """As `ReadingLog.get`."""
        return await self._log.get(sequence)

    async def close(self) -> None:
        """As `ReadingLog.close`."""
        await self._log.close()


@asynccontextmanager
async def open_source(
    place: str, config: DataPlaneConfig, *, growing: bool = False
) -> AsyncIterator[ReadOnly]:
    """The log at a place: ``nats``, a file of JSON Lines, an archive's directory or ``s3://…``.

    What the live log holds no more comes from the configured archive. For ``nats`` without a bus
    that answers it is the log as it lies on this machine, or in the archive, unless it must be
    `growing`. Raises ConfigError where there is none, and what the log raises.
    """
    if place != LIVE:
        async with _kept(_kept_at(place, config)) as log:
            yield log
        return
    try:
        live = await open_log(config)
    except LogUnavailable as error:
        if growing:
            raise
        async with _at_rest(config, error) as log:
            yield log
        return
    async with _with_its_past(live, config) as log:
        yield log


@asynccontextmanager
async def _with_its_past(live: JetStreamLog, config: DataPlaneConfig) -> AsyncIterator[ReadOnly]:
    """A log of a bus, with what it holds no more; both are closed in the end."""
    blobs = archive_of(config)
    log = ReadOnly(live if blobs is None else joined(live, blobs))
    try:
        yield log
    finally:
        await log.close()
        if blobs is not None:
            await blobs.close()


@asynccontextmanager
async def _at_rest(config: DataPlaneConfig, why: LogUnavailable) -> AsyncIterator[ReadOnly]:
    """The log where it lies while no bus answers. Raises `why` where it lies nowhere near."""
    store = config.state_dir / "nats"
    if not config.nats_url and EmbeddedServer(store).has_run:
        try:
            # Nobody can start the bus of this directory while we look at its store.
            lock = hold(config.state_dir)
        except DirectoryInUse as error:
            raise LogUnavailable(f"{why}; {error}") from why
        with lock:
            async with _own_store(store, config) as log:
                yield log
        return
    if not config.archive:
        raise LogUnavailable(f"{why}; without a bus, --from reads an archive or a file") from why
    async with _kept(_kept_at(config.archive, config)) as log:
        last = (await log.state()).last_sequence
        logger.warning("no bus answers: read from the archive, which ends at %d", last)
        yield log


@asynccontextmanager
async def _own_store(store: Path, config: DataPlaneConfig) -> AsyncIterator[ReadOnly]:
    """The log in the store of an embedded bus, by a server of our own on a port of its choice."""
    server = EmbeddedServer(store, port=0)
    await server.start_async()
    try:
        live = await JetStreamLog.connect(server.url, name="reader")
        async with _with_its_past(live, config) as log:
            yield log
    finally:
        await server.stop_async()


@asynccontextmanager
async def _kept(found: KeptLog | Blobs) -> AsyncIterator[ReadOnly]:
    if isinstance(found, KeptLog):
        yield ReadOnly(found)
        return
    try:
        try:
            log = await archived(found)
        except EntryMissing as error:
            raise ConfigError(str(error)) from None
        yield ReadOnly(log)
    finally:
        await found.close()


def archive_of(config: DataPlaneConfig) -> Blobs | None:
    """Where the log of this configuration is archived; None for nowhere."""
    if not config.archive:
        return None
    return blobs_at(config.archive, endpoint_url=config.s3_endpoint, region=config.s3_region)


def _kept_at(place: str, config: DataPlaneConfig) -> KeptLog | Blobs:
    """An exported file, or the archive in a directory, by the path of its manifest, or in S3."""
    if place.startswith("s3://"):
        return blobs_at(place, endpoint_url=config.s3_endpoint, region=config.s3_region)
    path = Path(place).expanduser()
    if path.is_file() and path.name != MANIFEST_NAME:
        return open_exported(path)
    if not path.exists():
        raise ConfigError(f"--from {place!r} is neither nats, nor s3://…, nor a file or directory")
    return blobs_at(str(path.parent if path.is_file() else path))
