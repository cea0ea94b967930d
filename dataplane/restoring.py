"""Bringing data and catalog back from the bucket alone, with nothing else left.

It reads manifests and objects and needs no coordinator; saying in a new log what the bucket holds
needs the bus. It never writes to the bucket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dataplane.config import ConfigError, DataPlaneConfig
from streams import events
from streams.codec import Fact, fact_id, node_fact, split_entries
from streams.log import Log
from streams.values import S3_NODE, DataEntry

if TYPE_CHECKING:
    from adapters.s3.bucket import Catalog, S3Bucket


@asynccontextmanager
async def open_bucket(config: DataPlaneConfig) -> AsyncIterator[S3Bucket]:
    """The configured bucket. Raises ConfigError if there is none."""
    if not config.s3_enabled:
        raise ConfigError("s3_enabled is off: there is no bucket")
    # Its libraries take longer to load than most commands take: only who needs it waits for them.
    from adapters.s3.bucket import S3Bucket
    from dataplane.agent.bucket import make_s3

    transport = make_s3(config)
    try:
        yield S3Bucket(transport)
    finally:
        await transport.close()


async def restore_catalog(bucket: S3Bucket, log: Log) -> Catalog:
    """Say in the log what the bucket holds, as its own word, and return it.

    Said again it is the same facts. Where a node says that it has a path, its word counts: the
    bucket only stands in. What only manifests name that can't be read is not said.
    """
    catalog = await bucket.catalog()
    for fact in _facts(catalog.known):
        await log.publish(fact)
    return catalog


def _facts(entries: Iterable[DataEntry]) -> Iterable[Fact]:
    for part in split_entries(tuple(entries)):
        content = fact_id(*((entry.path, entry.checksum) for entry in part))
        event = events.FilesObserved(node=S3_NODE, entries=part)
        yield node_fact(event, S3_NODE, fact_id("restored", content))
