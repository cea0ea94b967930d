"""Many small contents in one answer: a frame for each that was asked for, in the same order.

It must never be larger than was agreed, whatever is asked for: what is too large for a batch is not
in it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adapters.errors import Interrupted, Refused
from adapters.memory import room
from streams.values import SMALL_BYTES

#: Contents in one batch, and bytes: no one waits long for what another asked.
MOST_FRAMES = 1000
BATCH_BYTES = 32 << 20
DIGEST_BYTES = 32
#: Before each content: its size; `ABSENT` if it is not here.
FRAME = struct.Struct("<q")
ABSENT = -1
_PART_BYTES = 1 << 20


#: Takes contents by their numbers, which are overwritten afterwards; None where there is none of
#: the right size.
TakeFrames = Callable[[Sequence[tuple[int, memoryview | None]]], None]


class MalformedBatch(Refused):
    """What was asked for as a batch is none."""


def encode_list(checksums: Sequence[str]) -> bytes:
    """The contents that are wanted, as they are asked for."""
    return b"".join(bytes.fromhex(one.removeprefix("sha256:")) for one in checksums)


def decode_list(body: bytes) -> list[str]:
    """The contents that are asked for. Raises `MalformedBatch`."""
    if len(body) % DIGEST_BYTES or not 0 < len(body) <= MOST_FRAMES * DIGEST_BYTES:
        raise MalformedBatch(f"{len(body)} bytes are no list of digests")
    at = range(0, len(body), DIGEST_BYTES)
    return [f"sha256:{body[first : first + DIGEST_BYTES].hex()}" for first in at]


def frames(checksums: Sequence[str], locate: Callable[[str], Path | None]) -> Iterator[bytes]:
    """The answer, in parts fit for sending. Blocks; each part belongs in a thread."""
    part, filled, total = bytearray(_PART_BYTES), 0, 0
    for checksum in checksums:
        if _PART_BYTES - filled < FRAME.size + SMALL_BYTES + 1:
            yield bytes(memoryview(part)[:filled])
            filled = 0
        room = memoryview(part)[filled + FRAME.size :][: SMALL_BYTES + 1]
        size = _read(checksum, locate, room) if total < BATCH_BYTES else ABSENT
        FRAME.pack_into(part, filled, size)
        filled += FRAME.size + max(size, 0)
        total += max(size, 0)
    yield bytes(memoryview(part)[:filled])


def _read(checksum: str, locate: Callable[[str], Path | None], room: memoryview) -> int:
    """Read a small content; how many bytes it has, `ABSENT` if it is not here or is not small."""
    path = locate(checksum)
    if path is None:
        return ABSENT
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ABSENT
    try:
        size = os.readv(handle, [room])
        return size if size <= SMALL_BYTES else ABSENT
    except OSError:
        return ABSENT
    finally:
        os.close(handle)


class Contents:
    """The contents of a batch, handed on as they become whole, in whatever pieces they come."""

    def __init__(self, sizes: Sequence[int], take: TakeFrames) -> None:
        """Contents of these sizes are to come."""
        self._sizes = sizes
        self._take = take
        self._held = room(_PART_BYTES + SMALL_BYTES)
        self._filled = 0
        #: How many have come.
        self.came = 0

    @property
    def over(self) -> bool:
        """Whether all have come."""
        return self.came == len(self._sizes)

    @property
    def room(self) -> memoryview:
        """Where the next bytes belong, before they are `filled`."""
        return self._held[self._filled :]

    def feed(self, piece: bytes) -> None:
        """The next bytes have come. As `filled`."""
        left = memoryview(piece)
        while left:
            there = self.room[: len(left)]
            there[:] = left[: len(there)]
            left = left[len(there) :]
            self.filled(len(there))

    def filled(self, count: int) -> None:
        """So many bytes have come to `room`. Blocks as `take` does. Raises `Interrupted` if they
        are none of a batch.
        """
        at, end = 0, self._filled + count
        whole = list[tuple[int, memoryview | None]]()
        malformed = None
        while self.came + len(whole) < len(self._sizes) and end - at >= FRAME.size:
            (size,) = FRAME.unpack_from(self._held, at)
            if size != ABSENT and not 0 <= size <= SMALL_BYTES:
                malformed = Interrupted(f"a frame of {size} bytes came")
                break
            first = at + FRAME.size
            if end - first < size:
                break
            at = first + max(size, 0)
            number = self.came + len(whole)
            whole.append((number, self._held[first:at] if size == self._sizes[number] else None))
        if whole:
            self._take(whole)
            self.came += len(whole)
        if malformed is not None:
            raise malformed
        # What comes after all is not looked at.
        self._filled = 0 if self.over else end - at
        self._held[: self._filled] = bytes(self._held[at : at + self._filled])
