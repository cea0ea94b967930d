"""A push over SSH, but for the bytes: where they gather at the target, and how they are named.

The target's shell proves the digest; nothing gets its final name before. It makes one attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec

from adapters.errors import (
    DiskFull,
    EntryMissing,
    Interrupted,
    NeverReplaced,
    PathEscapes,
    Refused,
    Regression,
    TransportError,
)
from adapters.files.checks import is_database
from adapters.files.digest import hex_of
from adapters.files.landing import SMALLEST_NPZ_SHARE, partial_name
from adapters.files.places import OWN_DIRECTORY, RESERVE
from adapters.files.sqlite import SIDE_FILES
from adapters.ssh.channel import Channel, Opens
from adapters.ssh.shell import MARK, PREPARE, PUBLISH, command, following
from adapters.transport import Request
from adapters.workers import settled
from streams.identity import Ownership, PathRules, escapes
from streams.values import Endpoint

#: From here on a pushed file is digested while it comes, not only when all of it is there.
FOLLOWED_FROM_BYTES = 16 << 20
#: A far end that digests slower than this is taken for stalled.
SLOWEST_DIGEST_BYTES_S = 20e6
_SAID_BYTES = 4 << 10


class Place(msgspec.Struct, frozen=True):
    """Where a pushed file gathers at the target."""

    #: The directory whose ``.dataplane/partial`` it is: the highest on the final name's disk.
    home: str
    partial: str
    #: Bytes from the beginning that are there already.
    have: int

    @property
    def path(self) -> str:
        """The partial file, absolute."""
        return f"{self.home.rstrip('/')}/{OWN_DIRECTORY}/partial/{self.partial}"


async def prepared(opens: Opens, request: Request, rules: PathRules, tools: str = "") -> Place:
    """Ask the target what is there. Raises what forbids to send the entry, before a byte moves."""
    directories, name = _final(request)
    partial = partial_name(request.transfer, request.entry)
    root = _root(request.target)
    async with opens(command(PREPARE, root, partial, tools, name, *directories)) as channel:
        channel.end()
        said = await channel.answer()
    facts = dict(re.findall(rf"^{MARK}(final|have|room) (\d+)$", said, re.MULTILINE))
    _, found, home = said.partition(f"{MARK}home ")
    if not found or "have" not in facts:
        raise Interrupted(f"{request.target.node} gave no answer")
    have, size = int(facts["have"]), request.entry.size_bytes
    _refuse_replacement(request, facts.get("final"), rules)
    if have > size:
        have = 0
    room = int(facts["room"]) * 1024 if "room" in facts else None
    if room is not None and size - have + int(size * RESERVE) > room:
        raise DiskFull(f"{request.target.node} has {room} bytes free, the entry has {size}")
    return Place(home.removesuffix("\n"), partial, have)


async def sent(
    opens: Opens,
    request: Request,
    place: Place,
    send: Callable[[], Awaitable[bool]],
    followed_from: int = FOLLOWED_FROM_BYTES,
) -> bool:
    """Let `send` send what is lacking; whether the target has proven it on the way already.

    `send` says whether nobody but one writer of its own wrote. Only a file that nobody else can
    have open is proven so: where something was already, somebody may.
    """
    if place.have or request.entry.size_bytes < followed_from or request.gathers:
        await send()
        return False
    following = asyncio.ensure_future(_followed(opens, request, place))
    try:
        if await send():
            with contextlib.suppress(TransportError):
                return await following
        return False
    finally:
        following.cancel()
        await settled(following)


async def _followed(opens: Opens, request: Request, place: Place) -> bool:
    """Whether the target, reading behind whoever writes there, finds the entry's digest.

    What it can't do, or finds otherwise, proves nothing: `published` looks again.
    """
    entry = request.entry
    async with opens(following(place.home, place.partial, entry.size_bytes)) as channel:
        channel.end()
        said = b""
        while data := await channel.read(_SAID_BYTES):
            said = (said + data)[-_SAID_BYTES:]
        await channel.succeed()
    return f"{MARK}digest {hex_of(entry.checksum)}\n".encode() in said


async def published(
    opens: Opens, request: Request, rules: PathRules, place: Place, *, proven: bool = False
) -> None:
    """Let the target prove the digest, unless it is `proven`, and give the file its final name.

    If it is cancelled before the digest is proven, the target gives no name; after that it ends
    first. Raises `DigestMismatch` if the bytes are not the entry's; then nothing is kept.
    """
    directories, name = _final(request)
    entry = request.entry
    merged = rules.ownership(entry.path) is Ownership.MERGED
    words = command(
        PUBLISH,
        place.home,
        place.partial,
        "" if proven else hex_of(entry.checksum),
        str(entry.size_bytes),
        _stamp(entry.mtime),
        "merged" if merged else "",
        " ".join(SIDE_FILES) if is_database(entry.path) else "",
        _root(request.target),
        name,
        *directories,
    )
    async with opens(words) as channel:
        patience_s = request.stall_s + entry.size_bytes / SLOWEST_DIGEST_BYTES_S
        if not await channel.hears("proven", patience_s):
            await _lacking(channel)
        naming = asyncio.ensure_future(_named(channel))
        try:
            await asyncio.shield(naming)
        except asyncio.CancelledError:
            await settled(naming)
            raise


async def _lacking(channel: Channel) -> None:
    try:
        await channel.succeed()
    except EntryMissing as error:
        raise Interrupted(f"{channel.who}: bytes are missing") from error
    raise Interrupted(f"{channel.who} said nothing")


async def _named(channel: Channel) -> None:
    await channel.write(b"go\n")
    channel.end()
    landed = await channel.hears("landed")
    await channel.succeed()
    if not landed:
        raise Interrupted(f"{channel.who} did not say that the file has landed")


def _final(request: Request) -> tuple[list[str], str]:
    local = request.local_path or request.entry.path
    if escapes(local) or local.split("/", 1)[0] == OWN_DIRECTORY:
        raise PathEscapes(f"{local!r} is no clean path below a data root")
    *directories, name = local.split("/")
    return directories, name


def _root(target: Endpoint) -> str:
    if not target.data_root.startswith("/") or "\0" in target.data_root:
        raise Refused(f"{target.node} does not say where its files are")
    return target.data_root


def _refuse_replacement(request: Request, final_bytes: str | None, rules: PathRules) -> None:
    if final_bytes is None:
        return
    entry, old = request.entry, int(final_bytes)
    if rules.ownership(entry.path) is Ownership.MERGED:
        raise NeverReplaced(f"{entry.path} is only ever merged, and there is one already")
    local = request.local_path or entry.path
    if local.lower().endswith(".npz") and entry.size_bytes < old * SMALLEST_NPZ_SHARE:
        raise Regression(f"{entry.path}: {entry.size_bytes} bytes would replace {old}")


def _stamp(mtime: float) -> str:
    """A time as ``touch -t`` knows it, in UTC; "" if there is none."""
    return datetime.fromtimestamp(mtime, UTC).strftime("%Y%m%d%H%M.%S") if mtime > 0 else ""
