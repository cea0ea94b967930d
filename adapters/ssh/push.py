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
from adapters.ssh.shell import FOLLOW, MARK, PREPARE, PUBLISH, command
from adapters.transport import Request
from adapters.workers import settled
from streams.identity import Ownership, PathRules, escapes
from streams.values import Endpoint

#: From here on a pushed file is digested while it comes, not only when all of it is there.
FOLLOWED_FROM_BYTES = 16 << 20
#: A far end that digests slower than this is taken for stalled.
SLOWEST_DIGEST_BYTES_S = 20e6


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


async def delivered(
    opens: Opens,
    request: Request,
    rules: PathRules,
    place: Place,
    send: Callable[[], Awaitable[bool]],
    followed_from: int = FOLLOWED_FROM_BYTES,
) -> None:
    """Let `send` send what is lacking, if anything is, and let the target give the file its final
    name, unless that is its agent's to do. As `published`.

    `send` says whether nobody but one writer of its own wrote. Only a file that nobody else can
    have open is proven on the way: where something was already, somebody may.
    """
    size = request.entry.size_bytes
    named = False
    if not place.have and 0 < size >= followed_from and not request.gathers:
        named = await _followed(opens, request, rules, place, send)
    elif place.have < size:
        await send()
    if not named and not request.gathers:
        await published(opens, request, rules, place)


async def published(opens: Opens, request: Request, rules: PathRules, place: Place) -> None:
    """Let the target prove the digest and give the file its final name.

    If it is cancelled before the digest is proven, the target gives no name; after that it ends
    first. Raises `DigestMismatch` if the bytes are not the entry's; then nothing is kept.
    """
    async with opens(_publishing(PUBLISH, request, rules, place)) as channel:
        await _named(channel, request)


async def _followed(
    opens: Opens,
    request: Request,
    rules: PathRules,
    place: Place,
    send: Callable[[], Awaitable[bool]],
) -> bool:
    """Let `send` send while the target reads behind it; whether it has named the file by that.

    What the target can't do, or finds otherwise, is no failure: `published` looks again.
    """
    whole = asyncio.Event()
    # So long may it be until the first byte comes.
    patience = f"{request.connect_s + request.stall_s:g}"

    async def follow() -> bool:
        async with opens(_publishing(FOLLOW, request, rules, place, patience)) as channel:
            if not await channel.hears("digested"):
                return False
            await whole.wait()
            await channel.write(b"whole\n")
            await _named(channel, request)
            return True

    following = asyncio.ensure_future(follow())
    try:
        if await send():
            whole.set()
            with contextlib.suppress(TransportError):
                return await following
        return False
    finally:
        following.cancel()
        await settled(following)


def _publishing(
    script: str, request: Request, rules: PathRules, place: Place, *patience: str
) -> str:
    """The command that runs `PUBLISH`, or `FOLLOW` with a patience, for an entry."""
    directories, name = _final(request)
    entry = request.entry
    merged = rules.ownership(entry.path) is Ownership.MERGED
    return command(
        script,
        *patience,
        place.home,
        place.partial,
        hex_of(entry.checksum),
        str(entry.size_bytes),
        _stamp(entry.mtime),
        "merged" if merged else "",
        " ".join(SIDE_FILES) if is_database(entry.path) else "",
        _root(request.target),
        name,
        *directories,
    )


async def _named(channel: Channel, request: Request) -> None:
    """Wait for the proof, and let the name be given."""
    patience_s = request.stall_s + request.entry.size_bytes / SLOWEST_DIGEST_BYTES_S
    if not await channel.hears("proven", patience_s):
        await _lacking(channel)
    naming = asyncio.ensure_future(_name(channel))
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


async def _name(channel: Channel) -> None:
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
    entry, old, who = request.entry, int(final_bytes), request.target.node
    if rules.ownership(entry.path) is Ownership.MERGED:
        raise NeverReplaced(f"{who}: {entry.path} is only ever merged, and there is one already")
    local = request.local_path or entry.path
    if local.lower().endswith(".npz") and entry.size_bytes < old * SMALLEST_NPZ_SHARE:
        raise Regression(f"{who}: {entry.path}: {entry.size_bytes} bytes would replace {old}")


def _stamp(mtime: float) -> str:
    """A time as ``touch -t`` knows it, in UTC; "" if there is none, or none that it knows."""
    if mtime > 0:
        with contextlib.suppress(OverflowError, ValueError, OSError):
            return datetime.fromtimestamp(mtime, UTC).strftime("%Y%m%d%H%M.%S")
    return ""
