"""The loop that keeps the archive up with the log."""

from __future__ import annotations

import asyncio
import logging

from adapters.blobs import blobs_at
from adapters.transport import TransportError
from dataplane.audit.archive import extend
from dataplane.config import DataPlaneConfig
from streams.jetstream import JetStreamLog
from streams.log import LogError

logger = logging.getLogger(__name__)


async def keep_archive(log: JetStreamLog, config: DataPlaneConfig) -> None:
    """Archive what is new, again and again; what goes wrong is said and tried again.

    Several may do it for one archive: who comes second finds nothing to do, or is told.
    """
    blobs = blobs_at(config.archive, endpoint_url=config.s3_endpoint, region=config.s3_region)
    try:
        while True:
            try:
                done = await extend(blobs, log)
                if done.messages:
                    logger.info("archived up to %d in %s", done.last_sequence, done.where)
            except (LogError, TransportError, OSError) as error:
                logger.warning("the log was not archived: %s", error)
            await asyncio.sleep(config.archive_interval)
    finally:
        await blobs.close()
