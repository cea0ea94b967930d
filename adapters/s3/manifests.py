"""The manifests of a bucket: read, grown, and put aside where one can't be read.

A manifest grows conditionally, so that of several writers none loses what another wrote. **Nothing
here deletes an object or drops an entry.** One that can't be read holds up nobody for good, and may
be all that names some objects: it is kept beside, as the bucket has it, before another takes its
place, and what it names counts again once it can be read there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from adapters.errors import EntryMissing, Overtaken, Refused
from adapters.s3 import layout
from adapters.s3.flow import Flow
from adapters.s3.layout import LaterRelease, Manifest, ManifestUnreadable
from adapters.s3.store import Store
from adapters.workers import finish

logger = logging.getLogger(__name__)

#: How often another writer may win before the attempt ends.
_RACES = 16


class Readable(NamedTuple):
    """Manifests, as far as they can be read."""

    manifests: Sequence[Manifest]
    unreadable: Sequence[ManifestUnreadable]


class Manifests:
    """The manifests of one bucket."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def nodes(self) -> list[str]:
        """The nodes that have a manifest."""
        found = await self._store.listed(
            "list_objects_v2",
            "CommonPrefixes",
            Flow(),
            Prefix=layout.NODES_PREFIX,
            Delimiter="/",
        )
        names = (layout.node_in(one["Prefix"]) for one in found)
        return sorted(name for name in names if name)

    async def read(self, node: str) -> Manifest:
        """A node's manifest, or the consolidated one for "". Raises `EntryMissing` if there is
        none, `ManifestUnreadable` if it is none.
        """
        key = layout.manifest_key(node)
        data, _ = await self._bytes(key)
        if data is None:
            raise EntryMissing(f"there is no {self._store.name(key)}")
        return await self._parsed(data, node, key)

    async def readable(self, nodes: Iterable[str] | None = None) -> Readable:
        """The manifests of nodes, or all, with those that were put aside; "" is the consolidated
        one. A node without one is passed over.
        """
        found, unreadable = list[Manifest](), list[ManifestUnreadable]()
        aside = await self._aside()
        if nodes is None:
            nodes = sorted({"", *await self.nodes(), *(of for _, of in aside)})
        for node in nodes:
            for key in (layout.manifest_key(node), *(key for key, of in aside if of == node)):
                data, _ = await self._bytes(key)
                try:
                    found += [] if data is None else [await self._parsed(data, node, key)]
                except ManifestUnreadable as error:
                    unreadable.append(error)
        return Readable(found, unreadable)

    async def grow(self, node: str, manifests: Sequence[Manifest]) -> tuple[Manifest, bool]:
        """Merge manifests into one that others may be writing too; return it, and whether it was
        begun with them.

        Raises `LaterRelease`, and writes nothing, where a later release has written it.
        """
        key = layout.manifest_key(node)
        for _ in range(_RACES):
            data, etag = await self._bytes(key)
            with contextlib.suppress(Overtaken):
                known = None if data is None else await self._known(data, node, key, etag)
                merging = [known, *manifests] if known is not None else manifests
                wanted = layout.merged(node, merging, self._clock())
                if known is not None and known.entries == wanted.entries:
                    return known, False
                only = {"If-Match": etag} if data is not None else {"If-None-Match": "*"}
                new = layout.encoded(wanted)
                await self._store.send(key, new, hashlib.sha256(new).digest(), Flow(), only)
                return wanted, known is None
        name = self._store.name(key)
        raise Overtaken(f"{name}: others wrote it {_RACES} times meanwhile")

    async def _known(self, data: bytes, node: str, key: str, etag: str) -> Manifest | None:
        """What a manifest is that is to grow; None for one that had to be put aside."""
        try:
            return await self._parsed(data, node, key)
        except LaterRelease:
            # Whoever wrote it goes on with it: there is nothing to mend but this release.
            raise
        except ManifestUnreadable as error:
            beside = layout.aside_key(node, hashlib.sha256(data).hexdigest())
            try:
                if await self._store.head(beside, Flow()) is None:
                    await self._store.copy(key, beside, etag, Flow())
            except Refused as refused:
                raise ManifestUnreadable(f"{error}; it can't be kept beside: {refused}") from None
            logger.warning(
                "a manifest can't be read: %s; another is begun, and it is kept as %s: what it "
                "names counts again once it can be read there",
                error,
                self._store.name(beside),
            )
            return None

    async def _aside(self) -> list[tuple[str, str]]:
        """The manifests that were put aside: key, and whose; none for who may not look there."""
        try:
            listed = await self._store.listed(
                "list_objects_v2", "Contents", Flow(), Prefix=layout.ASIDE_PREFIX
            )
        except Refused:
            # They name more, or leave more in doubt: without them nothing is believed that is not.
            return []
        keys = [one["Key"] for one in listed]
        return [(key, of) for key in keys if (of := layout.aside_of(key)) is not None]

    async def _bytes(self, key: str) -> tuple[bytes | None, str]:
        """An object with its tag; None if there is none."""
        try:
            async with self._store.got(key, Flow()) as (said, pieces):
                return b"".join([piece async for piece in pieces]), said.object.etag
        except EntryMissing:
            return None, ""

    async def _parsed(self, data: bytes, node: str, key: str) -> Manifest:
        # Thousands of files are named by each: that is no work for the event loop.
        return await finish(lambda: layout.parsed(data, node, self._store.name(key)))
