"""Who is there now: heartbeats in a bucket that forgets, and the key that signs URLs.

Neither is a fact, and neither is in the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

import msgspec

from streams.log import Bus, LogError, PermissionDenied

logger = logging.getLogger(__name__)

NODES_BUCKET = "DP_NODES"
KEYS_BUCKET = "DP_KEYS"
_SIGNING_KEY = "http_signing"
_KEY_PATIENCE_S = 60.0


class Presence:
    """One process's heartbeat."""

    def __init__(self, bus: Bus, node: str, role: str) -> None:
        self._bus = bus
        self._key = f"{role}.{node}"
        self._started = time.time()

    async def beat(self, details: dict[str, Any]) -> None:
        """Say that this process lives and how it does. A lost beat is no fault."""
        value = {"time": time.time(), "started": self._started, **details}
        try:
            await self._bus.kv_put(NODES_BUCKET, self._key, msgspec.json.encode(value))
        except LogError as error:
            logger.debug("heartbeat not heard: %s", error)


async def present(bus: Bus) -> dict[str, dict[str, Any]]:
    """Processes that said within the bucket's lifetime that they live, by ``role.node``."""
    return {
        key: msgspec.json.decode(value) for key, value in (await bus.kv_all(NODES_BUCKET)).items()
    }


async def signing_key(bus: Bus) -> bytes:
    """The key with which this cluster's nodes sign URLs; made by whoever asks first and may.

    Who may not make it waits for a coordinator to. Raises PermissionDenied if none does.
    """
    deadline = time.monotonic() + _KEY_PATIENCE_S
    denied: PermissionDenied | None = None
    while True:
        key = await bus.kv_get(KEYS_BUCKET, _SIGNING_KEY)
        if key is not None:
            return key
        if denied is None:
            try:
                await bus.kv_create(KEYS_BUCKET, _SIGNING_KEY, secrets.token_bytes(32))
                continue
            except PermissionDenied as error:
                denied = error
        if time.monotonic() > deadline:
            raise denied
        await asyncio.sleep(0.1)
