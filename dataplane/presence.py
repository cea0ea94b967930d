"""Who is there now: heartbeats in a bucket that forgets, and the key that signs URLs.

Neither is a fact, and neither is in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from streams.codec import fact_id
from streams.foreign import Unreadable, from_json
from streams.log import Bus, LogError, LogUnavailable
from streams.wire import STREAM_NOT_FOUND, ApiError

logger = logging.getLogger(__name__)

NODES_BUCKET = "DP_NODES"
KEYS_BUCKET = "DP_KEYS"
_SIGNING_KEY = "http_signing"
_KEY_PATIENCE_S, _KEY_PAUSE_S = 60.0, 0.1
_LOOK_S = 1.0
#: Said by who has a name and does not work yet, or no more.
_NOT_YET = {"works": False}


class NameTaken(Exception):
    """Another process is there under this name; both would do the same work, and one must not."""


class Presence:
    """One process's heartbeat; with an `instance`, its claim to be the only one of its name.

    `instance` must be kept over restarts and belong to this process alone, as `instance_of` makes
    it: what is there under it is taken over at once. A name of another instance is free once that
    has let go of it, or has not been heard for as long as the bucket remembers.
    """

    def __init__(self, bus: Bus, node: str, role: str, instance: str = "") -> None:
        self._bus = bus
        self._key = f"{role}.{node}"
        self._started = time.time()
        self._instance = instance
        #: Of the last value we wrote; 0 before that, and once it was let go of.
        self._revision = 0

    async def claim(self) -> None:
        """Wait until nobody else has the name, and take it. Raises NameTaken once somebody beats.

        Raises a LogError while the bus can't be asked.
        """
        first = None
        while True:
            try:
                revision, value = await self._bus.kv_entry(NODES_BUCKET, self._key)
            except ApiError as error:
                if error.code != STREAM_NOT_FOUND:
                    raise
                logger.info("waiting: the bus knows nobody, until a coordinator has been there")
                await asyncio.sleep(_LOOK_S)
                continue
            if self._may_take(value):
                if await self._write(revision, _NOT_YET):
                    return
                continue
            if first is None:
                first = revision
                logger.warning("waiting for a name: %s", self._taken_by(value))
            if revision != first:
                raise NameTaken(self._taken_by(value))
            await asyncio.sleep(_LOOK_S)

    async def beat(self, details: dict[str, Any]) -> None:
        """Say that this process lives and how it does. A lost beat is no fault.

        Raises NameTaken where another instance has the name by now.
        """
        try:
            if not self._instance:
                await self._bus.kv_put(NODES_BUCKET, self._key, self._value(details))
            elif not await self._write(self._revision, details):
                # The bucket forgot us, or was made anew.
                revision, value = await self._bus.kv_entry(NODES_BUCKET, self._key)
                if not self._may_take(value):
                    self._revision = 0
                    raise NameTaken(self._taken_by(value))
                await self._write(revision, details)
        except LogError as error:
            logger.debug("heartbeat not heard: %s", error)

    async def leave(self) -> None:
        """Let go of the name, so that another need not wait. Harmless if it is not ours."""
        if not self._revision:
            return
        revision, self._revision, self._instance = self._revision, 0, ""
        with contextlib.suppress(LogError, TimeoutError):
            async with asyncio.timeout(1.0):
                value = self._value(_NOT_YET)
                await self._bus.kv_update(NODES_BUCKET, self._key, value, revision)

    def _value(self, details: Mapping[str, Any]) -> bytes:
        value = {
            "time": time.time(),
            "started": self._started,
            "instance": self._instance,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        return msgspec.json.encode({**value, **details})

    async def _write(self, revision: int, details: Mapping[str, Any]) -> bool:
        value = self._value(details)
        written = await self._bus.kv_update(NODES_BUCKET, self._key, value, revision)
        self._revision = written or self._revision
        return written is not None

    def _may_take(self, value: bytes | None) -> bool:
        return value is None or _Claim.of(value).instance in ("", self._instance)

    def _taken_by(self, value: bytes | None) -> str:
        claim = _Claim.of(value or b"{}")
        where = f"process {claim.pid} on {claim.host}"
        return f"{self._key} is {where}: no two may have one name at once"


class _Claim(msgspec.Struct, frozen=True):
    """Who has a name, as far as its last value says."""

    instance: str = ""
    host: str = ""
    pid: int = 0

    @classmethod
    def of(cls, value: bytes) -> _Claim:
        try:
            return from_json(value, cls)
        except Unreadable:
            return cls()


def instance_of(directory: Path) -> str:
    """What tells the process that works on `directory` from others; kept over restarts.

    Only who has the directory's lock may use it: the one that had it before is dead. A copy of the
    directory on another machine is another instance.
    """
    file = directory / "instance"
    try:
        token = file.read_text()
    except FileNotFoundError:
        token = secrets.token_hex(8)
        # What can't be kept is another one after a restart, which waits for this one's name.
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(token)
    machine = ""
    with contextlib.suppress(OSError):
        machine = Path("/etc/machine-id").read_text()
    return fact_id(token, machine, socket.gethostname(), str(directory.resolve()))


async def present(bus: Bus) -> dict[str, dict[str, Any]]:
    """Processes that said within the bucket's lifetime that they work, by ``role.node``."""
    beats: dict[str, dict[str, Any]] = {}
    for key, value in (await bus.kv_all(NODES_BUCKET)).items():
        try:
            beats[key] = from_json(value, dict[str, Any])
        except Unreadable as error:
            logger.warning("the heartbeat %s is none: %s", key, error)
    return {key: beat for key, beat in beats.items() if beat.get("works", True)}


async def make_signing_key(bus: Bus) -> None:
    """Make the key with which this cluster's nodes sign URLs, where there is none."""
    if await bus.kv_get(KEYS_BUCKET, _SIGNING_KEY) is None:
        await bus.kv_create(KEYS_BUCKET, _SIGNING_KEY, secrets.token_bytes(32))


async def signing_key(bus: Bus) -> bytes:
    """That key, once a coordinator has made it. Raises LogUnavailable if none does."""
    deadline = time.monotonic() + _KEY_PATIENCE_S
    while time.monotonic() < deadline:
        key = await bus.kv_get(KEYS_BUCKET, _SIGNING_KEY)
        if key is not None:
            return key
        await asyncio.sleep(_KEY_PAUSE_S)
    raise LogUnavailable("no coordinator has made the key that signs URLs: is one running?")
